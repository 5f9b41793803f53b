package boltstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/storetest"
)

// backupOf makes a store a part of which is in the journal alone, and a backup of it.
func backupOf(t testing.TB, path string) (*storetest.Model, []byte, BackupInfo) {
	t.Helper()
	s, err := Open(path, Options{Delay: -1})
	if err != nil {
		t.Fatal(err)
	}
	h := &history{seed: 7}
	for i := range 30 {
		changes := h.next()
		if err := s.Commit(t.Context(), h.Revision, changes); err != nil {
			t.Fatal(err)
		}
		h.Apply(changes...)
		if i == 19 {
			if err := s.checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var file bytes.Buffer
	info, err := s.Backup(t.Context(), &file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != int64(file.Len()) || info.Revision != h.Revision || info.StoreID != s.id {
		t.Errorf("it says %+v, and has %d bytes of revision %d of %s", info, file.Len(), h.Revision, s.id)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return &h.Model, file.Bytes(), info
}

// What was backed up is there after a restore, under another id, and the store from before is kept.
func TestBackup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	m, file, info := backupOf(t, path)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Restore(t.Context(), path, bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
		t.Errorf("the store is another one before anybody opens it (%v)", err)
	}
	if err := Withdraw(path); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, path)
	if s.id != info.StoreID {
		t.Error("it is the one that was withdrawn")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, id, err := Restore(t.Context(), path, bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, path)
	if s.id != id || id == info.StoreID {
		t.Errorf("store id %s, want %s, and another one than %s", s.id, id, info.StoreID)
	}
	m.Check(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, filepath.Dir(path)); strings.Join(got, " ") != "portd.db portd.db-before-restore" {
		t.Errorf("there is %v", got)
	}
	if err := PutBack(path); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, path)
	defer s.Close()
	if s.id != info.StoreID {
		t.Error("the one from before is not back")
	}
	m.Check(t, s)
}

// Any byte of a backup that is another one, and any end that is too early, is found, and leaves nothing behind.
func TestBackupDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	_, whole, _ := backupOf(t, path)
	step := max(len(whole)/200*every(1), 1)
	for at := 0; at < len(whole); at += step {
		bad := bytes.Clone(whole)
		bad[at] ^= 1
		for name, file := range map[string][]byte{"changed": bad, "cut": whole[:at]} {
			if _, err := CheckBackup(t.Context(), bytes.NewReader(file)); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
				t.Fatalf("%s at %d of %d: %v", name, at, len(whole), err)
			}
		}
	}
	for name, tt := range map[string]struct {
		file []byte
		want error
		says string
	}{
		"empty":    {nil, ErrForeign, "it is empty"},
		"text":     {[]byte("hello, this is something else\n"), ErrForeign, "no backup"},
		"longer":   {append(bytes.Clone(whole), 0), ErrDamaged, "goes on after its end"},
		"newer":    {[]byte("portd backup 2\nxxxxxxxxxx"), ErrForeign, "newer portd"},
		"a half":   {whole[:len(whole)/2], ErrDamaged, "cut off: it should have"},
		"journal":  {[]byte(journalMagic + "xxxxxxxxxx"), ErrForeign, "a journal"},
		"3 letter": {whole[:3], ErrDamaged, "cut off after 3"},
	} {
		_, _, err := Restore(t.Context(), path, bytes.NewReader(tt.file))
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %v that says %q", name, err, tt.want, tt.says)
		}
	}
	if got := list(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("there is %v", got)
	}
}

func FuzzBackup(f *testing.F) {
	_, whole, _ := backupOf(f, filepath.Join(f.TempDir(), "portd.db"))
	f.Add(whole[:min(len(whole), 4096)])
	f.Add([]byte(backupMagic + "\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := CheckBackup(t.Context(), bytes.NewReader(b)); err != nil &&
			!errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) && !errors.As(err, new(*SchemaError)) {
			t.Error(err)
		}
	})
}

// Wherever the taking of what was restored is interrupted, the next one goes on.
func TestAdoptInterrupted(t *testing.T) {
	for name, until := range map[string]func(path string) error{
		"before":     func(string) error { return nil },
		"file moved": func(path string) error { return os.Rename(path, BeforeRestore(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "portd.db")
			m, file, _ := backupOf(t, path)
			if _, _, err := Restore(t.Context(), path, bytes.NewReader(file)); err != nil {
				t.Fatal(err)
			}
			if err := until(path); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, path)
			defer s.Close()
			m.Check(t, s)
		})
	}
}

// On trial the file stays what the portd reads that wrote it; when it is settled all is there, and the file from before beside it.
func TestTrial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	write(t, path, unpack(t, filepath.Join("testdata", "schema2.db.gz")))
	s, err := Open(path, Options{Trial: true})
	if err != nil {
		t.Fatal(err)
	}
	full := storetest.Full(1)
	full.Revision = s.rev + 1
	if err := s.Commit(t.Context(), s.rev, []registry.Change{full}); err != nil {
		t.Fatal(err)
	}
	if err := s.db.View(func(tx *bolt.Tx) error {
		if have, err := schemaOf(tx); have != 2 || err != nil || tx.Bucket(bucketFormer) != nil {
			t.Errorf("schema %d (%v)", have, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Settle(); err != nil {
		t.Fatal(err)
	}
	st, err := s.Load(t.Context())
	if err != nil || len(st.Formers) != 1 || len(st.Namespaces) != 1 || st.Schema != closed(newest(migrations)) {
		t.Errorf("after it: %+v (%v)", st, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, filepath.Dir(path)); strings.Join(got, " ") != "portd.db portd.db.schema2.bak" {
		t.Errorf("there is %v", got)
	}
	if err := inspect(path+".schema2.bak", atOnce, 2); err != nil {
		t.Errorf("what was kept: %v", err)
	}
}

// Read-only is what is whole: a reservation that is damaged is missing, and the file stays as it is.
func TestReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	m := leave(t, path)
	s, err := OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	m.Check(t, s)
	if len(s.Damage()) > 0 {
		t.Errorf("damage: %v", s.Damage())
	}
	all, _ := s.Load(t.Context())
	s.Close()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := pageOfReservations(t, path, file)
	for at := 256; at < os.Getpagesize(); at++ {
		file[page+at] ^= 0x55
	}
	write(t, path, file)
	if s, err = OpenReadOnly(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st, err := s.Load(context.Background())
	if err != nil || len(s.Damage()) == 0 || len(st.Reservations) > len(all.Reservations) {
		t.Errorf("%d reservations of %d, damage %v (%v)", len(st.Reservations), len(all.Reservations), s.Damage(), err)
	}
	if err := s.Commit(t.Context(), st.Revision, []registry.Change{{Revision: st.Revision + 1}}); err != nil {
		t.Error(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, file) {
		t.Error("it has changed the file")
	}
}

// What is served read-only is backed up with what is in the journal alone; where a record or a page is damaged there is no backup.
func TestReadOnlyBackup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	m := leave(t, path)
	s, err := OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	before := list(t, filepath.Dir(path))
	var file bytes.Buffer
	info, err := s.Backup(t.Context(), &file)
	if err != nil || info.Revision != m.Revision || info.Size != int64(file.Len()) {
		t.Fatalf("%+v, %d bytes (%v)", info, file.Len(), err)
	}
	if got := list(t, filepath.Dir(path)); !slices.Equal(got, before) {
		t.Errorf("there is %v, and there was %v", got, before)
	}
	s.Close()
	other := filepath.Join(t.TempDir(), "portd.db")
	if _, _, err := Restore(t.Context(), other, &file); err != nil {
		t.Fatal(err)
	}
	restored := mustOpen(t, other)
	defer restored.Close()
	m.Check(t, restored)

	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(whole)
	copy(damaged[pageOfReservations(t, path, whole)+256:], bytes.Repeat([]byte("x"), 1024))
	write(t, path, damaged)
	if s, err = OpenReadOnly(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	file.Reset()
	if _, err := s.Backup(t.Context(), &file); !errors.Is(err, ErrDamaged) || file.Len() > 0 {
		t.Errorf("%d bytes are written of what is damaged: %v", file.Len(), err)
	}
}

// No file makes the look at its pages panic, or go on for ever.
func FuzzPages(f *testing.F) {
	path := filepath.Join(f.TempDir(), "portd.db")
	if s, err := Open(path, Options{}); err != nil {
		f.Fatal(err)
	} else if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		take := func(_, _, _ []byte) error { return nil }
		if err := walk(bytes.NewReader(b), int64(len(b)), take, func(error) error { return nil }); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}
