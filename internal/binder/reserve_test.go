package binder_test

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// TestReleaseWithoutDescriptors: what is released is free also where there is no descriptor left at all, and nobody else's port is.
func TestReleaseWithoutDescriptors(t *testing.T) {
	needMessages(t)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	b := open(t, binder.Config{Spare: 50})
	limit(t, min(600, was.Max/2)) // what is above is what KeepBack keeps back
	soft := binder.MaxDescriptors()
	var eps []registry.Endpoint
	many := at(t, "tcp/1", 10000) // all over the bags
	for i := range 1500 {
		if i%5 == 0 {
			if err := b.Bind(t.Context(), registry.Bind{Key: key(many), Endpoint: many.At(uint16(10000 + i/5))}); err != nil {
				t.Fatal(err)
			}
		}
		ep := at(t, "tcp/1", uint16(11000+i))
		if i%100 == 0 { // a program might have a duplicate
			hold(t, b, ep)
			lent, err := b.Lend(key(ep))
			if err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(lent[0].FD)
			b.Return(key(ep))
		} else {
			hold(t, b, ep)
		}
		eps = append(eps, ep)
	}
	var taken []int
	fill := func() {
		for {
			fd, err := unix.MemfdCreate("taken", unix.MFD_CLOEXEC)
			if err != nil {
				return
			}
			taken = append(taken, fd)
		}
	}
	defer func() {
		for _, fd := range taken {
			_ = unix.Close(fd)
		}
	}()
	var errs []error
	free := []registry.Endpoint{}
	rand.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
	for _, ep := range eps[:200] {
		fill() // also what the last release has left
		errs = append(errs, b.Release(key(ep)))
		free = append(free, ep)
	}
	fill()
	errs = append(errs, b.Release(key(many)))
	for _, fd := range taken { // to see by
		_ = unix.Close(fd)
	}
	taken = nil
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := binder.MaxDescriptors(); n != soft {
		t.Errorf("the soft limit is %d, was %d", n, soft)
	}
	many.Last = 10299
	wantAllFree(t, many)
	for _, ep := range free {
		wantAllFree(t, ep)
	}
	for _, ep := range eps[200:] {
		wantHeld(t, ep)
		release(t, b, ep)
	}
}

// TestKeepBack: the soft limit is lowered once.
func TestKeepBack(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	limit(t, was.Max)
	for range 3 {
		if err := binder.KeepBack(); err != nil {
			t.Fatal(err)
		}
	}
	if n, most := uint64(binder.MaxDescriptors()), was.Max-min(was.Max/8, 256); n != most {
		t.Errorf("%d descriptors of %d are left to others, want %d", n, was.Max, most)
	}
}
