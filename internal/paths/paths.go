// Package paths says where portd keeps its sockets, its state and its policy, and where a client looks for them.
package paths

import (
	"fmt"
	"path/filepath"
)

// SocketEnv is the environment variable that tells clients of another control socket.
const SocketEnv = "PORTD_SOCKET"

// Paths are the places of one portd.
type Paths struct {
	Sockets string // directory of the sockets and of the lock
	State   string // directory of the store
	Policy  string // file
}

// System are the places of the portd that runs as root.
func System() Paths {
	return Paths{Sockets: "/run/portd", State: "/var/lib/portd", Policy: "/etc/portd/policy.yaml"}
}

// Of are the places of a portd that runs as uid: the system's for root, those of the XDG Base Directory Specification
// for others. The error says which part of the environment is missing.
func Of(uid int, getenv func(string) string) (Paths, error) {
	if uid == 0 {
		return System(), nil
	}
	state, err := xdg(getenv, "XDG_STATE_HOME", ".local/state")
	if err != nil {
		return Paths{}, err
	}
	config, err := xdg(getenv, "XDG_CONFIG_HOME", ".config")
	if err != nil {
		return Paths{}, err
	}
	p := Paths{Sockets: state, State: state, Policy: filepath.Join(config, "policy.yaml")}
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		p.Sockets = filepath.Join(dir, "portd")
	}
	return p, nil
}

// xdg is portd's directory under the one that a variable names, or under its default in the home directory. Relative
// paths do not count: the specification has them ignored.
func xdg(getenv func(string) string, name, fallback string) (string, error) {
	if dir := getenv(name); filepath.IsAbs(dir) {
		return filepath.Join(dir, "portd"), nil
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, fallback, "portd"), nil
	}
	return "", fmt.Errorf("neither $%s nor $HOME is an absolute path", name)
}

// Control is the control socket: gRPC and REST.
func (p Paths) Control() string { return filepath.Join(p.Sockets, "portd.sock") }

// Store is the database.
func (p Paths) Store() string { return filepath.Join(p.State, "portd.db") }

// Handoff is the hand-off socket of the portd with this control socket.
func Handoff(control string) string { return filepath.Join(filepath.Dir(control), "handoff.sock") }

// Lock is the lock file of the portd with this control socket.
func Lock(control string) string { return filepath.Join(filepath.Dir(control), "lock") }

// Controls are the control sockets that a client of this uid looks for, in this order: its own portd's, then the
// system's. Root has only the system's.
func Controls(uid int, getenv func(string) string) []string {
	system := System().Control()
	own, err := Of(uid, getenv)
	if uid == 0 || err != nil {
		return []string{system}
	}
	controls := []string{own.Control()}
	// A portd that was started without XDG_RUNTIME_DIR (by cron, say) has its socket in the state directory.
	if own.Sockets != own.State {
		own.Sockets = own.State
		controls = append(controls, own.Control())
	}
	return append(controls, system)
}
