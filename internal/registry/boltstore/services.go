package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// ReadServices reads the service registry from the file at path and changes nothing there: for a program that has no portd to
// ask. A file of an older portd has none: current is nil then. The errors are those of Open, fs.ErrNotExist where there is
// no file, and ErrInUse, at once, where a portd has it open.
func ReadServices(ctx context.Context, path string) (current *registry.Edition, own []*registry.OwnService, err error) {
	switch info, err := os.Stat(path); {
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular() || info.Size() == 0:
		return nil, nil, fmt.Errorf("%w: %s", ErrForeign, path)
	}
	db, file, err := openBolt(path, atOnce, true)
	if err != nil {
		return nil, nil, err
	}
	err = guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			_, m, err := look(tx, file, newest(migrations))
			if err != nil || tx.Bucket(bucketEdition) == nil {
				return err
			}
			newer, err := lastOps(path, m)
			if err != nil {
				return err
			}
			key := []byte(registry.CurrentSlot) // the one before is as large
			v := tx.Bucket(bucketEdition).Get(key)
			if o, changed := newer[string(bucketEdition)+"\x00"+registry.CurrentSlot]; changed {
				v = o.value
			}
			if v != nil {
				if current, err = decode(key, v, (*fromStored).edition); err != nil {
					return fmt.Errorf("%s %q: %w", bucketEdition, key, err)
				}
			}
			if own, err = load(ctx, tx, m, bucketService, (*fromStored).service); err != nil {
				return err
			}
			own = slices.DeleteFunc(own, func(s *registry.OwnService) bool {
				_, changed := newer[string(bucketService)+"\x00"+s.Key().ID]
				return changed
			})
			for _, o := range newer {
				if !bytes.Equal(o.bucket, bucketService) || o.value == nil {
					continue
				}
				s, err := decode(o.key, o.value, (*fromStored).service)
				if err != nil {
					return fmt.Errorf("%s %q: %w", bucketService, o.key, err)
				}
				own = append(own, s)
			}
			slices.SortFunc(own, func(a, b *registry.OwnService) int { return cmp.Compare(a.Key().ID, b.Key().ID) })
			return nil
		})
	})
	if errors.Is(err, ErrDamaged) {
		// Where bbolt panicked its Close may wait for ever.
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), abandon(file))
	}
	return current, own, errors.Join(err, db.Close())
}

// lastOps reads what is in the journal that a file needs, if it needs one: the last op for each key, by bucket and key.
func lastOps(path string, m *storepb.Meta) (map[string]op, error) {
	id := m.GetJournal()
	if len(id) != len(journalID{}) {
		return nil, nil
	}
	j, found, err := openJournal(journalPath(path), m.GetStoreId(), journalID(id), m.GetJournalSize(), registry.Revision(m.GetRevision()), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	last := map[string]op{}
	for _, b := range found {
		for _, o := range b.ops {
			last[string(o.bucket)+"\x00"+string(o.key)] = o
		}
	}
	return last, j.file.Close()
}

// atOnce waits for nobody: whoever reads only has another registry to fall back to.
var atOnce = Options{Timeout: time.Nanosecond}
