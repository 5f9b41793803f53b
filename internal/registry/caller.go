package registry

import (
	"strconv"
	"strings"
)

// A Principal is who owns a thing: "uid:1000". Other kinds ("cert:…", "token:…") have prefixes of their own.
type Principal string

// Self is the principal of what portd does of its own accord.
const Self Principal = "portd"

// UIDPrincipal is the principal of a local user.
func UIDPrincipal(uid uint32) Principal {
	return Principal("uid:" + strconv.FormatUint(uint64(uid), 10))
}

// A Caller is who asks, as the kernel says it.
type Caller struct {
	UID, GID uint32
	PID      int32 // for messages only, never for permission: it can be reused, and is 0 across pid namespaces
	// Netns is HostNetns, or another name where the caller lives in another network namespace than portd.
	Netns string
}

// Principal is who the caller is to policy and as an owner.
func (c Caller) Principal() Principal { return UIDPrincipal(c.UID) }

func (p Principal) uid() (uint32, bool) {
	s, ok := strings.CutPrefix(string(p), "uid:")
	uid, err := strconv.ParseUint(s, 10, 32)
	return uint32(uid), ok && err == nil
}
