package boltstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
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
			key := []byte(registry.CurrentSlot) // the one before is as large
			if v := tx.Bucket(bucketEdition).Get(key); v != nil {
				if current, err = decode(key, v, (*fromStored).edition); err != nil {
					return fmt.Errorf("%s %q: %w", bucketEdition, key, err)
				}
			}
			own, err = load(ctx, tx, m, bucketService, (*fromStored).service)
			return err
		})
	})
	if errors.Is(err, ErrDamaged) {
		// Where bbolt panicked its Close may wait for ever.
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), abandon(file))
	}
	return current, own, errors.Join(err, db.Close())
}

// atOnce waits for nobody: whoever reads only has another registry to fall back to.
var atOnce = Options{Timeout: time.Nanosecond}
