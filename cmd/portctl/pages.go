package main

import (
	"errors"
	"fmt"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
)

// mostOnPage is how much of the service registry portd gives at once.
const mostOnPage = 1000

// pages asks for one page after the other; ask returns the token of the next.
func pages(ask func(token string) (next string, err error)) error {
	for token := ""; ; {
		next, err := ask(token)
		if err != nil || next == "" {
			return err
		}
		token = next
	}
}

// mostStarts bounds how often a list begins anew because the registry changed while it was read.
const mostStarts = 5

// pagesOfOne is pages of the service registry. A page token ends with the registry that it is of; the list begins anew then,
// rather than to mix two, and whoever asks forgets what he has. One that never stays is no error of usage.
func pagesOfOne(forget func(), ask func(token string) (next string, err error)) error {
	for start := 1; ; start++ {
		forget()
		refused := false
		err := pages(func(token string) (string, error) {
			next, err := ask(token)
			refused = token != "" && (errors.Is(err, client.ErrInvalid) || errors.Is(err, registry.ErrInvalid))
			return next, err
		})
		switch {
		case !refused:
			return err
		case start == mostStarts:
			return try(fmt.Errorf("the service registry changed %d times while it was read: %v", start, err), "portctl watch")
		}
	}
}
