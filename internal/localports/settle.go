package localports

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// settle makes the sysctl the administrator's entries and want. Where all is well it only reads.
func (k *Keeper) settle(want *portSet) error {
	if want.empty() && k.has.sure.empty() && k.has.maybe.empty() {
		return nil
	}
	if well, err := k.look(want); err != nil || well {
		return err
	}
	s, err := openAlone()
	if err != nil {
		return err
	}
	defer s.close()
	there, err := s.read()
	if err != nil {
		return err
	}
	own := k.own(there)
	add, drop := want.without(there), own.without(want)
	if add.empty() && drop.empty() {
		return k.save(own, new(portSet))
	}
	// First what is added, which takes nothing away, so that it is done even where somebody else is at work on the file.
	if !add.empty() {
		if err := k.add(s, own, add); err != nil {
			return err
		}
		own, there = own.with(add), there.with(add)
	}
	if drop.empty() {
		return nil
	}
	if !s.alone {
		return fmt.Errorf("take %d of portd's entries out: %w", drop.count(), errBusy)
	}
	return k.drop(s, want, there, own, drop)
}

// look says whether all is well.
func (k *Keeper) look(want *portSet) (bool, error) {
	s, err := open(unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer s.close()
	text, err := s.text()
	if err != nil {
		return false, err
	}
	if text == k.seen && *want == k.seenFor {
		return true, nil
	}
	there, err := parsePorts(text)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", Path, err)
	}
	ours := &k.has.sure
	well := want.without(there).empty() && ours.without(there).empty() && ours.without(want).empty() && k.has.maybe.empty()
	if well {
		k.seen, k.seenFor = text, *want
	}
	return well, nil
}

// own is which of the entries that are there are portd's. Where one is gone that portd did not take out somebody has written
// the sysctl anew, and whatever he wrote is his.
func (k *Keeper) own(there *portSet) *portSet {
	if gone := k.has.sure.without(there); !gone.empty() {
		k.cfg.Log.Info("a sysctl was written anew; all that is in it is the administrator's", "sysctl", Path, "gone", gone.count())
		return new(portSet)
	}
	return k.has.sure.with(&k.has.maybe).and(there)
}

func (k *Keeper) add(s *sysctl, own, ports *portSet) error {
	if err := k.save(own, ports); err != nil {
		return err
	}
	if err := s.add(ports); err != nil {
		return err
	}
	return k.save(own.with(ports), new(portSet))
}

// drop takes ports out, which are among own, portd's of those that are there. Only a write of all that stays does so.
func (k *Keeper) drop(s *sysctl, want, there, own, ports *portSet) error {
	// In the middle of it some of portd's may be missing.
	if err := k.save(new(portSet), own); err != nil {
		return err
	}
	err := s.replace(there.without(ports), there.without(own))
	if errors.Is(err, errTooLong) {
		if !k.tooLong {
			k.tooLong = true
			k.cfg.Log.Warn("the administrator's entries fill more than one write, so portd's stay in a sysctl until they do not, or the host boots",
				"sysctl", Path, "ports", ports.count())
		}
		if k.seen, err = s.text(); err != nil {
			return err
		}
		k.seenFor = *want // or every look would come here
		return k.save(own, new(portSet))
	}
	if err != nil {
		return err
	}
	k.tooLong = false
	return k.save(own.without(ports), new(portSet))
}
