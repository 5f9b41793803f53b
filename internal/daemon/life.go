package daemon

import (
	"encoding/json"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/rpc"
)

// lifeName is the item that a life is written in: a file in memory, which whoever keeps the sockets keeps as well, so that it lasts as long.
const lifeName = "t.life"

// A life is what portds that go on from one to the next have in common. Where it cannot be kept it begins anew with each.
type life struct {
	file *os.File // nil: it is not written down
	past past
}

type past struct {
	Since     time.Time `json:"since"`
	Restarted time.Time `json:"restarted,omitzero"`
	Restarts  int       `json:"restarts,omitempty"`
	Upgrades  int       `json:"upgrades,omitempty"`
}

// live goes on with the life that was kept, or begins one. It is called by a portd that is the daemon; upgraded says that it took over
// from one that lived.
func (o *origin) live(started time.Time, upgraded bool) *life {
	l := &life{past: past{Since: started}}
	if fd, ok := o.take(lifeName); ok {
		l.file = os.NewFile(uintptr(fd), lifeName)
		text, err := io.ReadAll(io.NewSectionReader(l.file, 0, 4096))
		if err == nil && json.Unmarshal(text, &l.past) == nil {
			l.goOn(started, upgraded)
		}
	} else if fd, err := unix.MemfdCreate(lifeName, unix.MFD_CLOEXEC); err == nil {
		l.file = os.NewFile(uintptr(fd), lifeName)
		o.keep.Put(lifeName, fd)
	}
	if err := l.write(); err != nil {
		o.log.Warn("how often portd was restarted is not written down", "err", err)
	}
	return l
}

func (l *life) goOn(now time.Time, upgraded bool) {
	if upgraded {
		l.past.Upgrades++
		return
	}
	l.past.Restarts++
	l.past.Restarted = now
}

func (l *life) write() error {
	if l.file == nil {
		return nil
	}
	text, err := json.Marshal(l.past)
	if err == nil {
		err = l.file.Truncate(0)
	}
	if err == nil {
		_, err = l.file.WriteAt(text, 0)
	}
	return err
}

// close leaves it to who keeps it.
func (l *life) close() {
	if l.file != nil {
		_ = l.file.Close()
	}
}

// custody is who has what this portd has.
func (d *daemon) custody() rpc.Custody {
	c := rpc.Custody{Keeper: d.origin.keep.KeeperPID(), Manager: d.origin.keep.Managed(), Holder: d.holding.pid()}
	if d.life != nil {
		c.Since, c.Restarts, c.Restarted, c.Upgrades = d.life.past.Since, d.life.past.Restarts, d.life.past.Restarted, d.life.past.Upgrades
	}
	return c
}
