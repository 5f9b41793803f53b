package registry_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portd/portd/internal/registry"
)

// What is released by its endpoint in a namespace that is no more is looked for in a table that others write to meanwhile.
func TestReleaseInGoneNetns(t *testing.T) {
	all := newSpaces()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Netns: all})
	in := func(ns string, port int) registry.ReserveRequest {
		s := spec(t, fmt.Sprintf("tcp/%d", port))
		s.Endpoints[0].Netns = ns
		return registry.ReserveRequest{Spec: s}
	}
	const n = 50
	for port := range n {
		if _, err := r.Reserve(t.Context(), root, in("blue", 8000+port)); err != nil {
			t.Fatal(err)
		}
	}
	all.remove("blue")
	var both sync.WaitGroup
	both.Go(func() {
		for range 20 * n { // each is a visit
			if _, err := r.Uses(t.Context(), root, "green", registry.TCP, registry.PortRange{First: 1, Last: 1}); err != nil {
				t.Error(err)
			}
		}
	})
	both.Go(func() {
		for port := range n {
			_, err := r.Release(t.Context(), root, fmt.Sprintf("tcp/%d@blue", 8000+port), "")
			if err != nil && !errors.Is(err, registry.ErrNotFound) { // it has ended by itself
				t.Error(err)
			}
		}
	})
	both.Wait()
}

// slowSpaces are looked through only when look has returned.
type slowSpaces struct {
	*spaces
	look func()
}

func (s *slowSpaces) Gone(names []string) []string {
	s.look()
	return s.spaces.Gone(names)
}

// What was in a namespace may have ended, and the namespace be forgotten, while portd looks whether it is there.
func TestNetnsForgottenMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := &slowSpaces{spaces: newSpaces()}
		store, pegs := newStandIns()
		looking, looked := make(chan struct{}), make(chan struct{})
		all.look = sync.OnceFunc(func() { close(looking); <-looked })
		r, stop := start(t, store, pegs, registry.Config{Netns: all, BootTime: fakeBoot()})
		s := spec(t, "tcp/8080")
		s.Endpoints[0].Netns = "blue"
		res, err := r.Reserve(t.Context(), root, registry.ReserveRequest{Spec: s})
		if err != nil {
			t.Fatal(err)
		}
		<-looking
		release(t, r, res.ID)
		time.Sleep(2 * time.Minute)
		reserveNamed(t, r, root, "tcp/8081", "") // with which the namespace is forgotten
		all.remove("blue")
		close(looked)
		synctest.Wait()
		if n := all.keeps("blue"); n != 0 {
			t.Errorf("it is kept %d times", n)
		}
		stop()
	})
}

// namingSpaces take their time to say how a namespace is called.
type namingSpaces struct {
	*spaces
	asked, answer chan struct{}
}

func (s *namingSpaces) Name(c registry.Caller, text string) (string, error) {
	s.asked <- struct{}{}
	<-s.answer
	return s.spaces.Name(c, text)
}

// Whoever names an endpoint in another namespace keeps nobody waiting while portd looks which one that is.
func TestNamingHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	all := &namingSpaces{newSpaces(), make(chan struct{}), make(chan struct{})}
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Netns: all})
	const ref = "tcp/80@blue"
	for what, look := range map[string]func() error{
		"get":       func() error { _, err := r.Get(t.Context(), alice, ref); return err },
		"release":   func() error { _, err := r.Release(t.Context(), alice, ref, ""); return err },
		"attach":    func() error { _, err := r.Attach(t.Context(), alice, ref); return err },
		"listeners": func() error { _, err := r.Listeners(t.Context(), alice, ref); return err },
	} {
		found, done := make(chan error, 1), make(chan error, 1)
		go func() { found <- look() }()
		<-all.asked
		go func() {
			res, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "udp/8080")})
			if err == nil {
				_, err = r.Release(t.Context(), alice, res.ID, "")
			}
			done <- err
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			all.answer <- struct{}{}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: others wait for it", what)
			all.answer <- struct{}{}
			<-done
		}
		if err := <-found; !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", what, err)
		}
	}
}
