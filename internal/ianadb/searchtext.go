package ianadb

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A searchText is what Search reads of a DB: one document per set of cells, in file order, all of them one string.
type searchText struct {
	text      string // folded: the name, a line feed, the description, a line feed, and the other cells
	documents []document
	records   []uint32 // of all documents, each in file order
}

// A document is what records that differ in nothing but the protocol say.
type document struct {
	start, name, description uint32 // where it starts in text, and where those cells of it end
	bytes                    uint64 // which it has: a word with another is not in it
	alone                    uint64 // those that may be words of their own, so that one letter is not looked for at all its places
	records                  uint32 // where its own start in records; they end where those of the next document start
}

// newSearchText takes the columns that people search by. Contacts repeat the assignees, and dates, references and codes
// are not text.
func newSearchText(db *DB) *searchText {
	s := &searchText{records: make([]uint32, 0, db.Len())}
	seen := make(map[uint32]uint32, db.Len()) // by where the cells are, which records with equal ones share
	of := make([]uint32, db.Len())
	for i := range of {
		at := Record{db, uint32(i)}.cells()
		n, ok := seen[at]
		if !ok {
			n = uint32(len(seen))
			seen[at] = n
		}
		of[i] = n
	}
	s.documents = make([]document, len(seen)+1) // the last only ends the one before
	for _, n := range of {
		s.documents[n+1].records++
	}
	for i := range len(seen) {
		s.documents[i+1].records += s.documents[i].records
	}
	s.records = make([]uint32, db.Len())
	next := slices.Clone(s.documents)
	text := make([]byte, 0, len(db.cells))
	for i, n := range of {
		s.records[next[n].records] = uint32(i)
		next[n].records++
		if d := &s.documents[n]; next[n].records == d.records+1 {
			e := Record{db, uint32(i)}.Entry()
			description, alias, _ := strings.Cut(e.Description, "\n") // `IANA assigned this well-formed service name …`
			d.start = uint32(len(text))
			text = append(appendFolded(text, e.Name), '\n')
			d.name = uint32(len(text) - 1)
			text = append(appendFolded(text, description), '\n')
			d.description = uint32(len(text) - 1)
			for _, cell := range [...]string{alias, e.Assignee, e.UnauthorizedUse, e.Notes} {
				if cell != "" {
					text = append(appendFolded(text, cell), '\n')
				}
			}
			d.bytes, d.alone = bytesOf(text[d.start:])
		}
	}
	s.documents[len(seen)].start = uint32(len(text))
	s.text = string(text)
	return s
}

// bytesOf returns which bytes there are in folded text, and which of them may be words of their own.
func bytesOf(text []byte) (have, alone uint64) {
	before := false // was a letter or digit
	for i, c := range text {
		b, joins := byteBit(c), isAlnum(c)
		have |= b
		if !joins || !before && (i+1 == len(text) || !isAlnum(text[i+1])) {
			alone |= b
		}
		before = joins
	}
	return have, alone
}

// byteBit has a bit for each letter and digit; the other bytes share the rest.
func byteBit(c byte) uint64 {
	switch {
	case 'a' <= c && c <= 'z':
		return 1 << (c - 'a')
	case '0' <= c && c <= '9':
		return 1 << (26 + c - '0')
	}
	return 1 << (36 + c%28)
}

// appendFolded appends s with white space collapsed and letters folded, so that equal bytes are equal but for case.
func appendFolded(b []byte, s string) []byte {
	blank := false
	for i := 0; i < len(s); {
		c, n := rune(s[i]), 1
		if c >= utf8.RuneSelf {
			c, n = utf8.DecodeRuneInString(s[i:])
		}
		i += n
		if unicode.IsSpace(c) {
			blank = true
			continue
		}
		if blank {
			b, blank = append(b, ' '), false
		}
		if c < utf8.RuneSelf {
			b = append(b, lower(byte(c)))
		} else {
			b = utf8.AppendRune(b, fold(c))
		}
	}
	return b
}

// fold returns the same rune for all that are equal but for case.
func fold(r rune) rune {
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	if least < utf8.RuneSelf {
		return rune(lower(byte(least)))
	}
	return least
}

// find looks for the best place of a word in a document.
func (s *searchText) find(d, next *document, word string) (h hit, ok bool) {
	text, name := s.text[d.start:next.start], int(d.name-d.start)
	if strings.HasPrefix(text, word) {
		if name == len(word) {
			return hit{ExactName, inName}, true
		}
		return hit{NamePrefix, inName}, true
	}
	at := strings.Index(text, word)
	if at < 0 {
		return hit{}, false
	}
	h.kind = Substring
	for i := at; len(word) > 1 || d.alone&byteBit(word[0]) != 0; {
		if isWord(text, i, i+len(word)) {
			h.kind, at = WholeWord, i
			break
		}
		n := strings.Index(text[i+1:], word)
		if n < 0 {
			break
		}
		i += 1 + n
	}
	switch {
	case at < name:
		h.where = inName
	case at < int(d.description-d.start):
		h.where = inDescription
	default:
		h.where = inNotes
	}
	return h, true
}

// isWord reports whether neither a letter nor a digit goes on at either end of text[from:to].
func isWord(text string, from, to int) bool {
	return !joined(text, from) && !joined(text, to)
}

// joined reports whether there is a letter or a digit on either side of a place.
func joined(text string, at int) bool {
	if at == 0 || at == len(text) {
		return false
	}
	if before, after := text[at-1], text[at]; before < utf8.RuneSelf && after < utf8.RuneSelf {
		return isAlnum(before) && isAlnum(after)
	}
	return alnumBefore(text[:at]) && alnumAfter(text[at:])
}

func alnumBefore(s string) bool {
	r, _ := utf8.DecodeLastRuneInString(s)
	return unicode.IsLetter(r) || unicode.IsDigit(r)
}

func alnumAfter(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return unicode.IsLetter(r) || unicode.IsDigit(r)
}
