package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// keepRequests is how long a request id is remembered after what it answered has ended.
const keepRequests = time.Hour

// A request is a request id that was seen: answered, or on its way.
type request struct {
	stored *Request      // nil while on its way
	busy   chan struct{} // closed when no longer on its way
	ended  time.Time     // when what it answered was first seen to have ended
}

// once does a thing that came with a request id at most once. do gets the record to commit along with the change,
// nil where there is no request id; a failure forgets the id. Where the id was answered before, its record is returned.
func (r *Registry) once(ctx context.Context, c Caller, method, id string, content any, do func(*Request) error) (*Request, error) {
	leave, err := r.gate.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if id == "" {
		return nil, r.explained(do(nil))
	}
	if len(id) > 128 || !plain(id) {
		return nil, invalid("request_id", "allowed are up to 128 printable ASCII characters without blanks")
	}
	text, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("digest of a %s request: %w", method, err)
	}
	rec := &Request{Caller: c.Principal(), Method: method, ID: id, Digest: sha256.Sum256(text)}
	key := rec.Key()
	select {
	case <-r.recalled:
	case <-r.stopped:
		return nil, errStopping
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		r.mu.Lock()
		known := r.requests[key]
		if known == nil {
			break
		}
		r.mu.Unlock()
		if known.stored != nil {
			if known.stored.Digest != rec.Digest {
				return nil, &InvalidError{
					Field: "request_id", Code: "REQUEST_ID_REUSED",
					Reason: fmt.Sprintf("%q was used for another %s request; use a new one", id, method),
				}
			}
			return known.stored, nil
		}
		if err := wait(ctx, known.busy); err != nil {
			return nil, err
		}
	}
	mine := &request{busy: make(chan struct{})}
	r.requests[key] = mine
	r.mu.Unlock()

	err = r.explained(do(rec))
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || rec.Revision == 0 { // nothing was committed: nothing to remember
		delete(r.requests, key)
	} else {
		mine.stored = rec
	}
	close(mine.busy)
	return nil, err
}

// recall reads the requests that the Store remembers, unless it has.
func (r *Registry) recall(ctx context.Context) error {
	select {
	case <-r.recalled:
		return nil
	default:
	}
	all, err := r.cfg.Store.Requests(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range all {
		r.requests[q.Key()] = &request{stored: q}
	}
	close(r.recalled)
	return nil
}

// recallAgain is how long after a failure recall is tried again.
const recallAgain = 100 * time.Millisecond

// recallAll recalls as soon as the Store can. Until then nothing is committed: a request that is repeated would be done twice.
func (r *Registry) recallAll(ctx context.Context) error {
	said := false
	for {
		err := r.recall(ctx)
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		if !said {
			r.cfg.Log.Warn("which requests were answered cannot be read; changes wait until it can", "err", err)
			said = true
		}
		select {
		case <-time.After(recallAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// remember adds the record of a request to a commit.
func (c *commit) remember(rec *Request) {
	if rec != nil {
		c.put = append(c.put, rec)
	}
}

// forget adds the deletion of request ids that are too old to a commit. That of a Reserve, an Adopt or a CreateLease is kept for as
// long as the reservation or the lease lives and for an hour after, others for an hour. Only the committing goroutine calls it.
func (r *Registry) forget(c *commit, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetFormers(c)
	for key, q := range r.requests {
		switch {
		case q.stored == nil:
			continue
		case q.stored.Method == "CreateLease" && r.leases[q.stored.Lease.ID] != nil:
			continue
		case q.stored.Method == "CreateLease" && q.ended.IsZero():
			q.ended = now
		case q.stored.Method == "CreateLease":
		case q.stored.Method != "Reserve" && q.stored.Method != "Adopt":
			q.ended = q.stored.Time
		case r.entries[q.stored.Result.ID] != nil:
			continue
		case q.ended.IsZero():
			q.ended = now
		}
		if now.Sub(q.ended) >= keepRequests {
			c.del = append(c.del, key)
			c.apply = append(c.apply, func() { delete(r.requests, key) })
		}
	}
}
