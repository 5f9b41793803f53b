package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"
)

// A Session is an open stream that keeps a lease alive.
type Session struct {
	Lease   *Lease
	Token   string // resumes it; a secret
	Resumed bool

	r    *Registry
	l    *lease
	once sync.Once
}

// OpenSession makes a session, or resumes the one that token belongs to. It lives until Close and for its grace after
// that. A token that is unknown, or another's, is ErrNotFound.
func (r *Registry) OpenSession(ctx context.Context, c Caller, grace time.Duration, token string) (*Session, error) {
	if token != "" {
		return r.resume(c, token)
	}
	if grace < 0 || grace > MaxGrace {
		return nil, invalid("grace", "%v is not allowed; allowed are up to %v", grace, MaxGrace)
	}
	if grace == 0 {
		grace = DefaultGrace
	}
	leave, err := r.gate.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	token = rand.Text()
	rec := &Lease{
		ID: newID("lse_"), Owner: c.Principal(), Token: sha256.Sum256([]byte(token)),
		Spec: LeaseSpec{Kind: SessionLease, Grace: grace},
	}
	s := &Session{Lease: rec, Token: token, r: r}
	cm := &commit{by: c.Principal(), put: []Record{rec}}
	cm.events = []Event{{Type: EventLeaseCreated, Lease: rec, Caller: c.Principal()}}
	cm.apply = append(cm.apply, func() {
		s.l = newLease(rec)
		s.l.streams = 1
		r.insertLease(s.l)
	})
	if err := r.commit(cm); err != nil {
		return nil, err
	}
	return s, nil
}

func (r *Registry) resume(c Caller, token string) (*Session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.tokens[sha256.Sum256([]byte(token))]
	if l == nil || l.ending || l.Owner != c.Principal() {
		return nil, failed(ErrNotFound, "you have no such session, or it has ended; open a new one")
	}
	l.streams++
	r.unschedule(l)
	return &Session{Lease: l.Lease, Token: token, Resumed: true, r: r, l: l}, nil
}

// Done is closed when the lease has ended under the session.
func (s *Session) Done() <-chan struct{} { return s.l.done }

// Close ends the stream, and begins the lease's grace. Only the first call counts.
func (s *Session) Close() {
	s.once.Do(func() {
		s.r.mu.Lock()
		defer s.r.mu.Unlock()
		s.l.streams--
		if s.l.streams == 0 && s.r.leases[s.l.ID] == s.l {
			s.r.schedule(s.l, s.l.Spec.Grace)
		}
	})
}
