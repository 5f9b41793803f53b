package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
)

// A Page says which part of a list is wanted.
type Page struct {
	Size  int    // 0 means MaxPage, and more than MaxPage is MaxPage
	Token string // List.Next of the page before; empty: the first
}

// MaxPage is how many items a page has at most.
const MaxPage = 1000

// List is a page of a list.
type List[T any] struct {
	Items    []T
	Next     string   // empty at the end
	Revision Revision // of the store when the first page was made
	StoreID  string
}

func (p Page) size() int {
	if p.Size <= 0 || p.Size > MaxPage {
		return MaxPage
	}
	return p.Size
}

// A cursor is what a page token says: after which creation to go on, and the revision at which the list began.
type cursor struct{ after, revision Revision }

func (p Page) start(r *Registry) (cursor, error) {
	if p.Size < 0 {
		return cursor{}, invalid("page_size", "%d is negative", p.Size)
	}
	if p.Token == "" {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return cursor{revision: r.rev}, nil
	}
	var c cursor
	text, err := base64.RawURLEncoding.DecodeString(p.Token)
	if err == nil {
		_, err = fmt.Sscanf(string(text), "%d.%d", &c.after, &c.revision)
	}
	if err != nil {
		return cursor{}, invalid("page_token", "%q is not one of portd's; leave it out to begin anew", p.Token)
	}
	return c, nil
}

func (c cursor) next(after Revision) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%d", after, c.revision))
}

// A Filter selects reservations: every field that is set must match.
type Filter struct {
	Owner  Principal
	Proto  Protocol
	Ports  PortRange // has a port in it
	Labels map[string]string
	States []EndpointState // has an endpoint in one of them
	Lease  string
	Netns  string
}

// Match says whether res is selected.
func (f Filter) Match(res *Reservation) bool {
	if f.Owner != "" && f.Owner != res.Owner || f.Lease != "" && f.Lease != res.Lease {
		return false
	}
	for k, v := range f.Labels {
		if have, ok := res.Labels[k]; !ok || have != v {
			return false
		}
	}
	if f.Proto == 0 && f.Ports == (PortRange{}) && len(f.States) == 0 && f.Netns == "" {
		return true
	}
	return slices.ContainsFunc(res.Assigned, func(a Assigned) bool {
		ep := a.Endpoint
		return (f.Proto == 0 || f.Proto == ep.Proto) &&
			(f.Ports == PortRange{} || ep.First <= f.Ports.Last && f.Ports.First <= ep.Last) &&
			(f.Netns == "" || f.Netns == ep.Netns) &&
			(len(f.States) == 0 || slices.Contains(f.States, a.State(res.Spec.Mode)) || len(a.Lost) > 0 && slices.Contains(f.States, StateLost))
	})
}

// List lists reservations in the order of their creation. Everybody may see them: they are what "who has my port?" is
// answered with.
func (r *Registry) List(_ context.Context, c Caller, f Filter, p Page) (List[*Reservation], error) {
	at, err := p.start(r)
	if err != nil {
		return List[*Reservation]{}, err
	}
	r.filterNetns(c, &f)
	out := List[*Reservation]{Revision: at.revision, StoreID: r.storeID}
	for {
		some := r.created(at.after)
		if len(some) == 0 {
			return out, nil
		}
		for _, res := range some {
			if !f.Match(res) {
				continue
			}
			if len(out.Items) == p.size() {
				out.Next = at.next(out.Items[len(out.Items)-1].CreateRevision)
				return out, nil
			}
			out.Items = append(out.Items, res)
		}
		at.after = some[len(some)-1].CreateRevision
	}
}

// created are the first reservations created after a revision: few, so that a list, whose filter may let nothing pass,
// holds up no writer.
func (r *Registry) created(after Revision) []*Reservation {
	r.mu.RLock()
	defer r.mu.RUnlock()
	i, _ := r.place(after + 1)
	entries := r.order[i:min(len(r.order), i+MaxPage+1)]
	some := make([]*Reservation, len(entries))
	for i, e := range entries {
		some[i] = e.res
	}
	return some
}

// Get is the reservation that ref means: an id, a name, or an endpoint with its protocol.
func (r *Registry) Get(_ context.Context, c Caller, ref string) (*Reservation, error) {
	at := r.refer(c, ref)
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, err := r.find(at)
	if err != nil {
		return nil, err
	}
	if e.res == nil {
		return nil, failed(ErrNotFound, "%s is not reserved", ref)
	}
	return e.res, nil
}
