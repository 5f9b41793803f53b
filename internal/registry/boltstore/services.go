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
// ask. A file of an older portd has none, which is no error. The errors are those of Open, fs.ErrNotExist where there is no
// file, and ErrInUse, at once, where a portd has it open.
func ReadServices(ctx context.Context, path string) (editions []*registry.Edition, own []*registry.OwnService, err error) {
	switch info, err := os.Stat(path); {
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular() || info.Size() == 0:
		return nil, nil, fmt.Errorf("%w: %s", ErrForeign, path)
	}
	if _, err := inspect(path, atOnce, newest(migrations)); err != nil {
		return nil, nil, err
	}
	db, file, err := openBolt(path, atOnce, true)
	if err != nil {
		return nil, nil, err
	}
	err = guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			m, err := readMeta(tx)
			if err != nil || tx.Bucket(bucketEdition) == nil {
				return err
			}
			if editions, err = load(ctx, tx, m, bucketEdition, (*fromStored).edition); err != nil {
				return err
			}
			own, err = load(ctx, tx, m, bucketService, (*fromStored).service)
			return err
		})
	})
	if errors.Is(err, ErrDamaged) {
		// Where bbolt panicked its Close may wait for ever.
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), abandon(file))
	}
	return editions, own, errors.Join(err, db.Close())
}

// atOnce waits for nobody: whoever reads only has another registry to fall back to.
var atOnce = Options{Timeout: time.Nanosecond}
