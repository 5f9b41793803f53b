package holder

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ask asks for a descriptor as Get does, and does not wait for the answer.
func (r *Rest) Ask(n int) error {
	b := make([]byte, unsafe.Sizeof(request{}), unsafe.Sizeof(request{})+4)
	binary.NativeEndian.PutUint32(b, opGet)
	return unix.Sendto(r.fd, binary.NativeEndian.AppendUint32(b, uint32(n)), 0, nil)
}

// Forget closes what r has without a word to the holder, as death does.
func (r *Rest) Forget() { closeAll([]int{r.fd, r.pidfd}) }

// SetPatience changes how long a holder may take, until restore is called.
func SetPatience(d time.Duration) (restore func()) {
	before := patience
	patience = d
	return func() { patience = before }
}
