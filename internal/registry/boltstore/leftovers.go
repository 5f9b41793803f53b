package boltstore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// copyingPath is where a copy of the store at path is written until it is whole.
func copyingPath(path string) string { return path + ".copying" }

// tidy removes what processes that died have left of files that had not got their names yet, for who has opened the store at path and
// does nothing else with it yet. One that somebody else is at work on is locked.
func tidy(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(path))
		if !ok || !e.Type().IsRegular() || !unfinished(rest) {
			continue
		}
		file := path + rest
		unlock, lockErr := lockAlone(file)
		if lockErr == nil {
			lockErr = removeIfThere(file)
			unlock()
		}
		if !errors.Is(lockErr, ErrInUse) {
			err = errors.Join(err, lockErr)
		}
	}
	return err
}

// unfinished says whether a file beside a store, whose name goes on like this, is one that has no name of its own yet.
func unfinished(rest string) bool {
	switch base := ""; rest {
	case copyingPath(base), restoringPath(base), journalPath(base) + ".new":
		return true
	}
	return strings.HasPrefix(rest, newInfix) || strings.HasPrefix(rest, oldInfix) && strings.HasSuffix(rest, ".new")
}
