package clients_test

import (
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"
)

// examples are the messages that docs/PROTOCOL.md shows, by their names.
func examples(t testing.TB) map[string][]byte {
	t.Helper()
	doc, err := os.ReadFile("../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	messages := map[string][]byte{}
	for _, block := range regexp.MustCompile("(?s)```hex ([a-z ]+)\n(.*?)```").FindAllStringSubmatch(string(doc), -1) {
		var digits strings.Builder
		for line := range strings.Lines(block[2]) {
			bytes, _, _ := strings.Cut(line, "   ") // what they mean
			digits.WriteString(strings.Join(strings.Fields(bytes), ""))
		}
		m, err := hex.DecodeString(digits.String())
		if err != nil {
			t.Fatal(err)
		}
		messages[block[1]] = m
	}
	if len(messages) < 7 {
		t.Fatalf("docs/PROTOCOL.md shows only %d messages", len(messages))
	}
	return messages
}

// Whatever portd says, no worker crashes, and none keeps descriptors that it has no use for.
func TestHostilePortd(t *testing.T) {
	var seeds strings.Builder
	for _, m := range examples(t) {
		seeds.WriteString(hex.EncodeToString(m) + "\n")
	}
	for _, seed := range []string{"1", "2"} {
		t.Run("c/"+seed, func(t *testing.T) {
			run(t, []byte(seeds.String()), compile(t, "testdata/fuzz.c", sanitize...), seed, "5000")
		})
		t.Run("python/"+seed, func(t *testing.T) {
			run(t, []byte(seeds.String()), python(t), "-W", "error", "testdata/fuzz.py", seed, "1000")
		})
	}
}
