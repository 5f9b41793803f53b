package ianadb

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
)

// small has a record of each kind.
func small(t testing.TB) []byte {
	t.Helper()
	blob, err := Compile([]Entry{
		{Port: "0", Protocol: TCP, Description: "Reserved"},
		{Name: "http", Port: "80", First: 80, Last: 80, Protocol: TCP, Notes: strings.Repeat("two length bytes ", 10)},
		{Name: "www", Port: "80", First: 80, Last: 80, Protocol: UDP},
		{Port: "100-200", First: 100, Last: 200, Description: "Unassigned"},
		{Name: "1password"},
	}, Source{Date: "2026-08-17"})
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// reseal makes a changed blob pass for one that was meant so.
func reseal(blob []byte) string {
	if len(blob) >= headerSize {
		binary.LittleEndian.PutUint32(blob[checksumAt:], checksum(string(blob)))
	}
	return string(blob)
}

func TestOpenRefuses(t *testing.T) {
	const ports = headerSize
	const records = ports + portsSize
	const lists = records + 5*recordSize
	blob := small(t)
	if _, err := Open(string(blob)); err != nil {
		t.Fatal(err)
	}
	slots := lists + 4*int(binary.LittleEndian.Uint32(blob[countsAt+4:]))
	cells := slots + 4*int(binary.LittleEndian.Uint32(blob[countsAt+8:]))

	put := func(at int, n uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], n); return b }
	}
	for name, tt := range map[string]struct {
		damage func([]byte) []byte
		reason string
	}{
		"empty":                       {func([]byte) []byte { return nil }, "not a compiled registry"},
		"not even a header":           {func(b []byte) []byte { return b[:headerSize-1] }, "not a compiled registry"},
		"something else":              {put(0, 0), "not a compiled registry"},
		"a later version":             {put(versionAt, version+1), "format version 2"},
		"cut short":                   {func(b []byte) []byte { return b[:len(b)-1] }, "do not match"},
		"too long":                    {func(b []byte) []byte { return append(b, 0) }, "do not match"},
		"a count past the end":        {put(countsAt, 1<<31), "do not match"},
		"no records":                  {put(countsAt, 0), "do not match"},
		"a port's list":               {put(ports+4*80, 1<<31), "port 80"},
		"a range backwards":           {put(records+4, 1), "record 0"},
		"a record's cells":            {put(records, 1<<31), "record 0"},
		"a protocol":                  {put(records+protocolAt, 9), "record 0"},
		"a status":                    {put(records+protocolAt, 9<<8), "record 0"},
		"a list's record":             {put(lists+4, 5), "list 1"},
		"a list without end":          {put(slots-4, 0), "does not end"},
		"a name's list":               {put(slots, 1<<20), "slot 0"},
		"a cell longer than the rest": {func(b []byte) []byte { b[len(b)-1] = 1; return b }, "record 4"},
		"no empty slot": {func(b []byte) []byte {
			for i := slots; i < cells; i += 4 {
				b[i] |= 1
			}
			return b
		}, "hash table"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(reseal(tt.damage(bytes.Clone(blob))))
			if err == nil || !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("error %v, want one about %q", err, tt.reason)
			}
		})
	}
}

// TestCompileRefusesCollisions: names chosen for their hashes would make every look-up a long walk.
func TestCompileRefusesCollisions(t *testing.T) {
	var alike []Entry
	for i := 0; len(alike) <= maxProbes; i++ {
		if name := fmt.Sprint("a", i); hash(name)%1024 == 0 { // of the slots that 257 names have
			alike = append(alike, Entry{Name: name})
		}
	}
	if _, err := Compile(alike[:maxProbes], Source{}); err != nil {
		t.Errorf("%d names of one hash: %v", maxProbes, err)
	}
	if _, err := Compile(alike, Source{}); err == nil || !strings.Contains(err.Error(), "256 names before it have nearly one hash") {
		t.Errorf("%d names of one hash: error %v", len(alike), err)
	}
}

// TestOpenSeesEveryBit flips bits all over a blob, in texts too, where no offset tells.
func TestOpenSeesEveryBit(t *testing.T) {
	blob := small(t)
	for at := 0; at < len(blob); at++ {
		if headerSize < at && at < headerSize+portsSize-1 && at%1009 != 0 {
			continue // that part is long and uniform
		}
		blob[at] ^= 1 << (at % 8)
		if _, err := Open(string(blob)); err == nil {
			t.Errorf("a flipped bit in byte %d was not seen", at)
		}
		blob[at] ^= 1 << (at % 8)
	}
}

// FuzzOpen writes over a part of a good blob and cuts it: Open refuses what is left, or every lookup in it ends.
func FuzzOpen(f *testing.F) {
	blob := small(f)
	f.Add(uint32(0), []byte{}, uint32(0))
	f.Add(uint32(versionAt), []byte{2}, uint32(0))
	for at := countsAt; at < headerSize; at += 4 {
		f.Add(uint32(at), []byte{0xff, 0xff, 0xff, 0xff}, uint32(0))
	}
	for at := headerSize + portsSize; at < len(blob); at += 11 {
		f.Add(uint32(at), []byte{0x80, 0x80, 0x00}, uint32(0))
	}
	f.Add(uint32(headerSize+4*80), []byte{0, 0xf0}, uint32(0))
	f.Add(uint32(0), []byte{}, uint32(17))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, cut uint32) {
		b := bytes.Clone(blob)
		copy(b[int(at)%len(b):], patch)
		db, err := Open(reseal(b[:len(b)-int(cut)%len(b)]))
		if err != nil {
			return
		}
		for port := range 1 << 16 {
			db.Status(uint16(port), UDP)
			for r := range db.ByPort(uint16(port), AnyProtocol) {
				_ = r.Entry()
			}
		}
		for r := range db.All() {
			db.Ports(r.Name(), TCP)
			for r := range db.ByName(r.Entry().Name, AnyProtocol) {
				_ = r.Entry().Status().String()
			}
		}
	})
}

// TestGenerated: registry.bin is what go generate makes from the CSV, and Open finds nothing wrong with it.
func TestGenerated(t *testing.T) {
	csv, err := os.ReadFile("service-names-port-numbers.csv")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := ParseCSV(bytes.NewReader(csv))
	if err != nil {
		t.Fatal(err)
	}
	blob, err := Compile(entries, Embedded().Source())
	if err != nil {
		t.Fatal(err)
	}
	if string(blob) != registry {
		t.Error("registry.bin is stale: run go generate ./internal/ianadb")
	}
	if _, err := Open(registry); err != nil {
		t.Error(err)
	}
}
