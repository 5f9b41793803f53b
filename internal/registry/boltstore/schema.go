package boltstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// The file, as bbolt's buckets:
//
//	meta
//	    schema                → uint32, big-endian. Where and how it is kept never changes, for every portd must find it
//	                            While there is a journal it is one more than without (closed)
//	    store                 → storepb.Meta
//	reservation
//	    ID                    → storepb.Reservation
//	lease
//	    ID                    → storepb.Lease
//	request
//	    CALLER 0 METHOD 0 ID  → storepb.Request
//	boot
//	    last                  → storepb.Boot
//	edition
//	    SLOT                  → storepb.EditionRecord: more than a megabyte, so nothing else is in its pages
//	service
//	    NAME/PROTOCOL/PORTS   → storepb.OwnService
//	former
//	    ID                    → storepb.Former, by the id of the reservation
//	namespace
//	    NAME                  → storepb.Namespace
//	event
//	    revision, 8 bytes big-endian → storepb.Change: every revision from Meta.oldest on has one
//
// Every value but schema is sealed: a CRC-32C of key and message (4 bytes, big-endian), then the message. bbolt itself has
// checksums on its two meta pages only.
var (
	bucketMeta        = []byte("meta")
	bucketReservation = []byte("reservation")
	bucketLease       = []byte("lease")
	bucketRequest     = []byte("request")
	bucketBoot        = []byte("boot")
	bucketEdition     = []byte("edition")
	bucketService     = []byte("service")
	bucketFormer      = []byte("former")
	bucketNamespace   = []byte("namespace")
	bucketEvent       = []byte("event")

	keySchema = []byte("schema")
	keyStore  = []byte("store")
	keyBoot   = []byte("last")
)

// bucketsOfRecords are those of a schema, whose records Meta counts; bucketMeta and bucketEvent come on top.
func bucketsOfRecords(schema uint32) [][]byte {
	all := [][]byte{bucketReservation, bucketLease, bucketRequest, bucketBoot}
	if schema >= 2 {
		all = append(all, bucketsOfServices...)
	}
	if schema >= 3 {
		all = append(all, bucketsOfFormers...)
	}
	return all
}

var (
	bucketsOfServices = [][]byte{bucketEdition, bucketService}
	bucketsOfFormers  = [][]byte{bucketFormer, bucketNamespace}
)

// A migration takes a file from one schema to the next.
type migration func(*bolt.Tx) error

// migrations[i] leaves schema i+1 for i+2.
var migrations = []migration{
	func(tx *bolt.Tx) error { return addBuckets(tx, bucketsOfServices) }, // the service registry is a part of the store
	func(tx *bolt.Tx) error { return addBuckets(tx, bucketsOfFormers) },  // what has ended is remembered; namespaces are known
	func(*bolt.Tx) error { return nil },                                  // there may be changes in a journal
}

// journaled is the schema of which a file differs from one of the schema before only while there is a journal: that keeps portds
// which know no journals away from a file that is not all.
const journaled = 4

// closed is the schema of a file that has no journal.
func closed(schema uint32) uint32 {
	if schema == journaled {
		return journaled - 1
	}
	return schema
}

func addBuckets(tx *bolt.Tx, names [][]byte) error {
	m, err := readMeta(tx)
	if err != nil {
		return err
	}
	if m.Records == nil {
		m.Records = map[string]int64{}
	}
	for _, name := range names {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
		m.Records[string(name)] = 0
	}
	o, err := put(bucketMeta, keyStore, m)
	if err != nil {
		return err
	}
	return o.apply(tx)
}

// newest is the schema that a portd with these migrations writes.
func newest(steps []migration) uint32 { return uint32(len(steps)) + 1 }

// A SchemaError says that a file was written by a newer portd, in a way that this one cannot read.
type SchemaError struct {
	Have  uint32 // the file's schema
	Reads uint32 // the newest that this portd reads
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("schema %d is newer than this portd, which reads up to %d: use the portd that wrote it", e.Have, e.Reads)
}

// schemaOf fails with ErrForeign where tx is of a file that portd did not make.
func schemaOf(tx *bolt.Tx) (uint32, error) {
	b := tx.Bucket(bucketMeta)
	if b == nil {
		return 0, fmt.Errorf("%w: it has no bucket %q", ErrForeign, bucketMeta)
	}
	v := b.Get(keySchema)
	if len(v) != 4 {
		return 0, fmt.Errorf("%w: it has no schema", ErrForeign)
	}
	return binary.BigEndian.Uint32(v), nil
}

func putSchema(tx *bolt.Tx, schema uint32) error {
	return tx.Bucket(bucketMeta).Put(keySchema, binary.BigEndian.AppendUint32(nil, schema))
}

// migrate brings the file to the newest schema, all the way or not at all.
func migrate(tx *bolt.Tx, steps []migration) error {
	have, err := schemaOf(tx)
	if err != nil {
		return err
	}
	for ; have < newest(steps); have++ {
		if err := steps[have-1](tx); err != nil {
			return fmt.Errorf("migrate from schema %d: %w", have, err)
		}
	}
	return putSchema(tx, closed(have))
}

func readMeta(tx *bolt.Tx) (*storepb.Meta, error) {
	m := &storepb.Meta{}
	v := tx.Bucket(bucketMeta).Get(keyStore)
	if err := unseal(keyStore, v, m); err != nil {
		return nil, fmt.Errorf("%s %q: %w", bucketMeta, keyStore, err)
	}
	return m, nil
}

func eventKey(r registry.Revision) []byte { return binary.BigEndian.AppendUint64(nil, uint64(r)) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal is what is kept of m under key.
func seal(key []byte, m proto.Message) ([]byte, error) {
	v, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 4, 256), m)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(v, checksum(key, v[4:]))
	return v, nil
}

// unseal reads into m what is kept under key. What it leaves in m has no part of v, which dies with its transaction.
func unseal(key, v []byte, m proto.Message) error {
	if err := checkSealed(key, v); err != nil {
		return err
	}
	if err := proto.Unmarshal(v[4:], m); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// checkSealed says whether v is whole, without reading what it says.
func checkSealed(key, v []byte) error {
	if len(v) < 4 {
		return fmt.Errorf("%w: %d bytes are not a record", ErrDamaged, len(v))
	}
	if binary.BigEndian.Uint32(v) != checksum(key, v[4:]) {
		return fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	return nil
}

func checksum(key, message []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, message)
}
