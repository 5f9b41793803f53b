package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
)

// Exit codes.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitTaken    = 4
	exitDenied   = 5
	exitNoDaemon = 6

	// As shells have them, for a program that could not be run.
	exitNotExecutable = 126
	exitNoProgram     = 127
)

// codeOf is what errors mean to a script, and what to try next where the command knows nothing better.
var codeOf = []struct {
	is   error
	code int
	try  string
}{
	{errUsage, exitUsage, ""},
	{registry.ErrInvalid, exitUsage, ""},
	{client.ErrInvalid, exitUsage, ""},
	{client.ErrNotFound, exitNotFound, "portctl list"},
	{registry.ErrNotFound, exitNotFound, ""}, // portctl's own answer where no portd was asked
	{client.ErrTaken, exitTaken, ""},
	{client.ErrDenied, exitDenied, "portctl list --mine"},
	{client.ErrNoDaemon, exitNoDaemon, ""}, // unreached says what to try
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var (
		s status
		p *programError
		r *report
	)
	switch {
	case errors.As(err, &s):
		return int(s)
	case errors.As(err, &p):
		return p.code
	case errors.As(err, &r):
		return r.Code
	}
	for _, c := range codeOf {
		if errors.Is(err, c.is) {
			return c.code
		}
	}
	return exitFailed
}

// explain is an error as a sentence, and the next step; both are empty where all has been said.
func explain(err error) (text, next string) {
	var s status
	if errors.As(err, &s) {
		return "", ""
	}
	text = strings.TrimSpace(err.Error())
	var (
		n *nextStep
		r *report
	)
	switch {
	case errors.As(err, &n):
		return text, n.try
	case errors.As(err, &r):
		return text, r.Try
	}
	for _, c := range codeOf {
		if errors.Is(err, c.is) {
			return text, c.try
		}
	}
	return text, ""
}

var errUsage = errors.New("wrong usage")

// A usageError is a command line that makes no sense.
type usageError string

func (e usageError) Error() string       { return string(e) }
func (e usageError) Is(other error) bool { return other == errUsage }

func usagef(format string, args ...any) error { return usageError(fmt.Sprintf(format, args...)) }

// A nextStep is an error with what to try next, a line for the shell.
type nextStep struct {
	error
	try string
}

func (e *nextStep) Unwrap() error { return e.error }

// try adds the next step to an error that has none yet.
func try(err error, next string) error {
	var n *nextStep
	if err == nil || errors.As(err, &n) {
		return err
	}
	return &nextStep{err, next}
}

// A status is an exit code for what has been said already, or is another program's own.
type status int

func (s status) Error() string { return fmt.Sprintf("exit %d", int(s)) }
