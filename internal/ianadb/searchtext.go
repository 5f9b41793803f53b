package ianadb

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A searchText is what Search reads of a DB: a document per set of cells, in file order, all of them in one string.
type searchText struct {
	text      string // folded: the name, a line feed, the description, a line feed, and the other cells
	documents []document
}

// A document is what records that differ in nothing but the protocol say.
type document struct {
	bytes, alone      uint64 // which bytes it has, and which may be words: most words are ruled out by these
	start, name, rest uint32 // where it starts in text, where its name ends, and where its description does
	record            uint32 // the first of them
	protocols         uint8  // a bit for each that they are for
}

// newSearchText takes the columns that people search by. Contacts repeat the assignees, and dates, references and codes
// are not text.
func newSearchText(db *DB) *searchText {
	documents := make([]document, 0, db.Len()+1)
	text := make([]byte, 0, len(db.cells))
	known := make(map[uint32]int, db.Len()) // by where their cells are, which are the same for tcp and udp
	for i := range uint32(db.Len()) {
		r := Record{db, i}
		n, ok := known[r.cells()]
		if !ok {
			n = len(documents)
			known[r.cells()] = n
			d := document{record: i, start: uint32(len(text))}
			text = d.appendTo(text, r.Entry())
			documents = append(documents, d)
		}
		documents[n].protocols |= 1 << r.Protocol()
	}
	documents = append(documents, document{start: uint32(len(text))}) // only ends the last one
	return &searchText{string(text), slices.Clone(documents)}
}

func (d *document) appendTo(text []byte, e Entry) []byte {
	// Most descriptions of more than one line end "IANA assigned this well-formed service name as a replacement for …".
	description, more, _ := strings.Cut(e.Description, "\n")
	text = append(appendFolded(text, e.Name), '\n')
	d.name = uint32(len(text) - 1)
	text = append(appendFolded(text, description), '\n')
	d.rest = uint32(len(text) - 1)
	for _, cell := range [...]string{more, e.Assignee, e.UnauthorizedUse, e.Notes} {
		if cell != "" {
			text = append(appendFolded(text, cell), '\n')
		}
	}
	d.bytes, d.alone = bytesOf(text[d.start:])
	return text
}

// meets reports whether a document has a record that says something about a protocol.
func (d *document) meets(p Protocol) bool {
	return p == AnyProtocol || d.protocols&(1<<p|1<<AnyProtocol) != 0
}

// bytesOf returns which bytes there are in folded text, and which of them may be words of their own.
func bytesOf(text []byte) (have, alone uint64) {
	last, before := uint64(0), false // the byte read last if it may yet be alone; whether it was a letter or digit
	for _, c := range text {
		b, joins := byteBits[c], isAlnum(c)
		have |= b
		switch {
		case !joins:
			alone |= last | b
			last = 0
		case before:
			last = 0
		default:
			last = b
		}
		before = joins
	}
	return have, alone | last
}

// byteBits has a bit for each letter and digit; the other bytes share the rest.
var byteBits = func() (bits [256]uint64) {
	for i := range bits {
		switch c := byte(i); {
		case 'a' <= c && c <= 'z':
			bits[i] = 1 << (c - 'a')
		case '0' <= c && c <= '9':
			bits[i] = 1 << (26 + c - '0')
		default:
			bits[i] = 1 << (36 + c%28)
		}
	}
	return bits
}()

// appendFolded appends s with white space collapsed and letters folded, so that equal bytes are equal but for case.
func appendFolded(b []byte, s string) []byte {
	blank := false
	for i := 0; i < len(s); {
		c, n := rune(s[i]), 1
		if c >= utf8.RuneSelf {
			c, n = utf8.DecodeRuneInString(s[i:])
		}
		i += n
		if c <= ' ' || c >= utf8.RuneSelf {
			if unicode.IsSpace(c) {
				blank = true
				continue
			}
			c = fold(c)
		}
		if blank {
			b, blank = append(b, ' '), false
		}
		if c < utf8.RuneSelf {
			b = append(b, lower(byte(c)))
		} else {
			b = utf8.AppendRune(b, c)
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
	for i := at; len(word) > 1 || d.alone&byteBits[word[0]] != 0; {
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
	case at < int(d.rest-d.start):
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
