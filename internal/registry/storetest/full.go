package storetest

import (
	"fmt"
	"net/netip"
	"reflect"
	"time"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// Full is a change that puts a record of every kind and has an event of every type. By reflection every field of every one
// of them is set to a value that is not zero, so that no store can forget one that is added later. Another n makes other
// values.
func Full(n int) registry.Change {
	f := filler{n: n * 10_000}
	r, l, q, b := new(registry.Reservation), new(registry.Lease), new(registry.Request), new(registry.Boot)
	c := registry.Change{
		Time: f.time(),
		Put:  []registry.Record{r, l, q, b, new(registry.Edition), new(registry.OwnService), new(registry.Former), new(registry.Namespace)},
	}
	for typ := registry.EventReserved; typ <= registry.EventUpdated; typ++ {
		var e registry.Event
		f.fill(reflect.ValueOf(&e).Elem())
		e.Type = typ
		e.Edition.Blob = "" // events have none
		c.Events = append(c.Events, e)
	}
	for _, p := range c.Put {
		f.fill(reflect.ValueOf(p).Elem())
	}
	return c
}

// A filler counts up, so that no two values are alike where they have room not to be.
type filler struct{ n int }

func (f *filler) time() time.Time {
	f.n++
	return time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC).Add(time.Duration(f.n) * 1_000_000_007)
}

// addr is IPv4, IPv6, and IPv6 with a zone, in turn.
func (f *filler) addr() netip.Addr {
	f.n++
	b := [16]byte{0: 0xfe, 1: 0x80, 13: byte(f.n >> 16), 14: byte(f.n >> 8), 15: byte(f.n)}
	switch a := netip.AddrFrom16(b); f.n % 3 {
	case 0:
		return netip.AddrFrom4([4]byte(b[12:]))
	case 1:
		return a.WithZone("eth0")
	default:
		return a
	}
}

func (f *filler) fill(v reflect.Value) {
	f.n++
	switch p := v.Addr().Interface().(type) {
	case *time.Time:
		*p = f.time()
		return
	case *netip.Addr:
		*p = f.addr()
		return
	// Some values only mean something; zero is not left out because it is the default.
	case *registry.Mode:
		*p = registry.Recorded
		return
	case *registry.LeaseKind:
		*p = registry.LeaseKind(1 + f.n%int(registry.ProcessLease))
		return
	case *registry.EventType:
		*p = registry.EventReserved
		return
	case *registry.HandoffStrategy:
		*p = registry.HandoffStrategy(1 + f.n%int(registry.ClientAddress))
		return
	case *registry.WithoutWorker:
		*p = registry.WithoutWorker(1 + f.n%int(registry.Park))
		return
	case *registry.Preference:
		*p = registry.Preference(1 + f.n%int(registry.PreferredByName))
		return
	case *registry.Origin:
		*p = registry.Imported
		return
	case *ianadb.Protocol:
		*p = ianadb.Protocol(1 + f.n%int(ianadb.DCCP))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(fmt.Sprintf("ä-%d", f.n))
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(f.n))
	case reflect.Uint8:
		v.SetUint(uint64(1 + f.n%255))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(f.n))
	case reflect.Uint16:
		v.SetUint(uint64(1 + f.n%65535))
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(key)
			f.fill(value)
			v.SetMapIndex(key, value)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				panic(fmt.Sprintf("storetest: %v has fields that cannot be seen: say here how to fill it", v.Type()))
			}
			f.fill(v.Field(i))
		}
	default:
		panic(fmt.Sprintf("storetest: say here how to fill a %v", v.Type()))
	}
}
