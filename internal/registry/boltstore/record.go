package boltstore

import (
	"fmt"
	"math/bits"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/registry"
)

// An op puts a value under a key of a bucket, or deletes the key where value is nil.
type op struct{ bucket, key, value []byte }

func (o op) apply(tx *bolt.Tx) error {
	if o.value == nil {
		return tx.Bucket(o.bucket).Delete(o.key)
	}
	return tx.Bucket(o.bucket).Put(o.key, o.value)
}

// size is what appendOp appends.
func (o op) size() int {
	n := varint(len(o.bucket)) + len(o.bucket) + varint(len(o.key)) + len(o.key)
	if o.value == nil {
		return n + 1
	}
	return n + varint(len(o.value)+1) + len(o.value)
}

// varint is how many bytes a length takes.
func varint(n int) int { return (bits.Len64(uint64(n)|1) + 6) / 7 }

// place is where the record of that key is kept.
func place(k registry.Key) (bucket, key []byte, err error) {
	switch k.Kind {
	case registry.KindReservation:
		bucket = bucketReservation
	case registry.KindLease:
		bucket = bucketLease
	case registry.KindRequest:
		bucket = bucketRequest
	case registry.KindBoot:
		if k.ID != "" {
			return nil, nil, fmt.Errorf("a boot record has no id, not %q", k.ID)
		}
		return bucketBoot, keyBoot, nil
	case registry.KindEdition:
		bucket = bucketEdition
	case registry.KindService:
		bucket = bucketService
	case registry.KindFormer:
		bucket = bucketFormer
	case registry.KindNamespace:
		bucket = bucketNamespace
	default:
		return nil, nil, fmt.Errorf("the store keeps no records of kind %q", k.Kind)
	}
	if k.ID == "" {
		return nil, nil, fmt.Errorf("a record of kind %q without an id", k.Kind)
	}
	if len(k.ID) > bolt.MaxKeySize {
		return nil, nil, fmt.Errorf("a record of kind %q with an id of %d bytes; %d are allowed", k.Kind, len(k.ID), bolt.MaxKeySize)
	}
	return bucket, []byte(k.ID), nil
}

func (c *toStored) putRecord(r registry.Record) (op, error) {
	bucket, key, err := place(r.Key())
	if err != nil {
		return op{}, err
	}
	var m proto.Message
	switch r := r.(type) {
	case *registry.Reservation:
		m = c.reservation(r)
	case *registry.Lease:
		m = c.lease(r)
	case *registry.Request:
		m = c.request(r)
	case *registry.Boot:
		m = c.boot(r)
	case *registry.Edition:
		m = c.edition(r)
	case *registry.OwnService:
		m = c.service(r)
	case *registry.Former:
		m = c.former(r)
	case *registry.Namespace:
		m = c.namespace(r)
	default:
		return op{}, fmt.Errorf("the store keeps no %T", r)
	}
	if c.err != nil {
		return op{}, fmt.Errorf("%s %q: %w", bucket, key, c.err)
	}
	return put(bucket, key, m)
}

func deleteRecord(k registry.Key) (op, error) {
	bucket, key, err := place(k)
	return op{bucket: bucket, key: key}, err
}

func (c *toStored) putChange(ch registry.Change) (op, error) {
	m := c.change(ch)
	if c.err != nil {
		return op{}, fmt.Errorf("%s %d: %w", bucketEvent, ch.Revision, c.err)
	}
	return put(bucketEvent, eventKey(ch.Revision), m)
}

func put(bucket, key []byte, m proto.Message) (op, error) {
	v, err := seal(key, m)
	if err != nil {
		return op{}, fmt.Errorf("%s %q: %w", bucket, key, err)
	}
	return op{bucket, key, v}, nil
}

// A message is a pointer to M, which is generated.
type message[M any] interface {
	*M
	proto.Message
}

// decode reads what is kept as an M under k.
func decode[T, M any, P message[M]](k, v []byte, convert func(*fromStored, P) T) (r T, err error) {
	m := P(new(M))
	if err := unseal(k, v, m); err != nil {
		return r, err
	}
	var c fromStored
	if r = convert(&c, m); c.err != nil {
		return r, fmt.Errorf("%w: %w", ErrDamaged, c.err)
	}
	return r, nil
}
