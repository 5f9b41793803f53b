// Package shortage says in words which limit of the system an error is about, and how to lift it.
package shortage

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Of is a sentence for an error that says that the system has run out of something; it wraps err. It is nil for every other error.
func Of(err error) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		return &sentence{fmt.Sprintf("all of %s are open", Descriptors()), err}
	case errors.Is(err, unix.ENFILE):
		return &sentence{"this host has no descriptors left: raise the sysctl fs.file-max", err}
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
		return &sentence{fmt.Sprintf("the kernel has no memory for it (%v): raise the limit of portd's memory cgroup, or free some", err), err}
	case errors.Is(err, unix.ETOOMANYREFS):
		return &sentence{"too many descriptors of portd's user are in messages: raise RLIMIT_NOFILE, or give portd CAP_SYS_RESOURCE (unix(7))", err}
	case errors.Is(err, unix.ENOSPC):
		return &sentence{"free some on the disk of portd's state, and portd goes on by itself", err}
	case errors.Is(err, unix.EDQUOT):
		return &sentence{"the quota of portd's user on the disk of its state is used up: raise it, or free some", err}
	case errors.Is(err, unix.EFBIG):
		return &sentence{"a file of portd's may not grow further: raise RLIMIT_FSIZE (LimitFSIZE= in the unit, ulimit -f)", err}
	}
	return nil
}

type sentence struct {
	text string
	err  error
}

func (s *sentence) Error() string { return s.text }
func (s *sentence) Unwrap() error { return s.err }

// Descriptors spells RLIMIT_NOFILE and how to lift it: "the 1024 descriptors that portd may have (…)".
func Descriptors() string {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return "the descriptors that portd may have (RLIMIT_NOFILE)"
	}
	return fmt.Sprintf("the %d descriptors that portd may have (RLIMIT_NOFILE; raise it by LimitNOFILE= in the unit or ulimit -Hn)", l.Cur)
}
