package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
	"github.com/portd/portd/internal/registry/storetest"
)

// That nothing of the registry's types is lost is storetest's EveryField; this is that the messages have nothing more.
func TestEveryFieldIsWritten(t *testing.T) {
	full := storetest.Full(1)
	var c toStored
	messages := []proto.Message{c.change(full)}
	for _, r := range full.Put {
		switch r := r.(type) {
		case *registry.Reservation:
			messages = append(messages, c.reservation(r))
		case *registry.Lease:
			messages = append(messages, c.lease(r))
		case *registry.Request:
			messages = append(messages, c.request(r))
		case *registry.Boot:
			messages = append(messages, c.boot(r))
		case *registry.Edition:
			messages = append(messages, c.edition(r))
		case *registry.OwnService:
			messages = append(messages, c.service(r))
		case *registry.Former:
			messages = append(messages, c.former(r))
		case *registry.Namespace:
			messages = append(messages, c.namespace(r))
		}
	}
	if c.err != nil || len(messages) != 9 {
		t.Fatalf("%d messages (%v)", len(messages), c.err)
	}
	for _, m := range messages {
		wantFull(t, m.ProtoReflect())
	}
}

func wantFull(t *testing.T, m protoreflect.Message) {
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		switch v := m.Get(f); {
		case !m.Has(f):
			t.Errorf("%s is never written", f.FullName())
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				wantFull(t, v.List().Get(i).Message())
			}
		case f.Message().FullName().Parent() == "portd.store.v1":
			wantFull(t, v.Message())
		}
	}
}

// The release after this one may have written fields and types of events that this one does not know.
func TestNewerRecords(t *testing.T) {
	unknown := protowire.AppendTag(nil, 1000, protowire.BytesType)
	unknown = protowire.AppendString(unknown, "from the future")

	r := &storepb.Reservation{Id: "rsv_1", Spec: &storepb.Spec{Mode: storepb.Mode_MODE_RECORDED}}
	r.ProtoReflect().SetUnknown(unknown)
	r.Spec.ProtoReflect().SetUnknown(unknown)
	want := &registry.Reservation{ID: "rsv_1", Spec: registry.Spec{Mode: registry.Recorded}}
	key := []byte("rsv_1")
	got, err := decode(key, mustSeal(t, key, r), (*fromStored).reservation)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}

	r.Spec.Mode = 77
	if _, err := decode(key, mustSeal(t, key, r), (*fromStored).reservation); !errors.Is(err, ErrDamaged) {
		t.Errorf("a mode that cannot be understood: %v", err)
	}

	change := &storepb.Change{Events: []*storepb.Event{{Type: 77, Reason: "?"}, {Type: storepb.EventType_EVENT_TYPE_LOST}}}
	var c fromStored
	events := c.change(3, change).Events
	if diff := cmp.Diff([]registry.Event{{Type: registry.EventLost}}, events); diff != "" || c.err != nil {
		t.Errorf("%v (-want +got):\n%s", c.err, diff)
	}
}

// The name of a process is any bytes, and may be the reason of an event; proto3 keeps only text.
func TestReasonIsMadeText(t *testing.T) {
	var c toStored
	m := c.change(registry.Change{Events: []registry.Event{{Type: registry.EventLost, Reason: "in use by x\xff"}}})
	if got, want := m.Events[0].Reason, "in use by x\uFFFD"; got != want || c.err != nil {
		t.Errorf("%q (%v), want %q", got, c.err, want)
	}
}

func mustSeal(t testing.TB, key []byte, m proto.Message) []byte {
	t.Helper()
	v, err := seal(key, m)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Whatever is read either is an error or is written again as it was read.
func FuzzDecode(f *testing.F) {
	full := storetest.Full(1)
	seeds, err := encode(0, []registry.Change{{Revision: 1, Time: full.Time, Put: full.Put, Events: full.Events[:1]}})
	if err != nil {
		f.Fatal(err)
	}
	for i, o := range seeds.ops {
		f.Add(byte(i), o.value[4:])
		f.Add(byte(i), o.value[4:len(o.value)/2])
	}
	key := []byte("key")
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		if _, err := decode(key, body, (*fromStored).boot); err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("unsealed: %v", err)
		}
		sealed := append(binary.BigEndian.AppendUint32(nil, checksum(key, body)), body...)
		switch kind % 7 {
		case 0:
			again(t, sealed, func(c *fromStored, m *storepb.Change) registry.Change { return c.change(1, m) }, (*toStored).change)
		case 1:
			again(t, sealed, (*fromStored).reservation, (*toStored).reservation)
		case 2:
			again(t, sealed, (*fromStored).lease, (*toStored).lease)
		case 3:
			again(t, sealed, (*fromStored).request, (*toStored).request)
		case 4:
			again(t, sealed, (*fromStored).boot, (*toStored).boot)
		case 5:
			again(t, sealed, (*fromStored).edition, (*toStored).edition)
		case 6:
			again(t, sealed, (*fromStored).service, (*toStored).service)
		}
		if !bytes.Equal(sealed[4:], body) {
			t.Error("decoding has changed what it read")
		}
	})
}

func again[T, M any, P message[M]](t *testing.T, sealed []byte, from func(*fromStored, P) T, to func(*toStored, T) P) {
	key := []byte("key")
	r, err := decode(key, sealed, from)
	if err != nil {
		if !errors.Is(err, ErrDamaged) || strings.Contains(err.Error(), "checksum") {
			t.Error(err)
		}
		return
	}
	var c toStored
	m := to(&c, r)
	if c.err != nil {
		t.Fatalf("%+v was read and cannot be written: %v", r, c.err)
	}
	r2, err := decode(key, mustSeal(t, key, m), from)
	if diff := cmp.Diff(r, r2, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
		t.Errorf("%v (-read +written and read):\n%s", err, diff)
	}
}
