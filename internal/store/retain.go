package store

import (
	"fmt"
	"os"
	"time"
)

// retain deletes the oldest segments: those that are too old, and where all together take too much,
// connections first. Listeners may have half.
func (s *Store) retain() error {
	files, err := list(s.cfg.Dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	writing := make(map[uint64]bool)
	for _, w := range s.out {
		if w == nil {
			continue
		}
		writing[w.file.seq] = true
		if w.old != nil {
			writing[w.old.file.seq] = true
		}
	}
	for _, j := range s.queue {
		writing[j.file.seq] = true
	}
	s.mu.Unlock()
	var size [classes]int64
	for _, f := range files {
		size[f.class] += f.size
	}
	room := s.cfg.MaxSize - int64(classes)*s.segAt // for what the segments that are written may still take
	var x index
	var buf []byte
	var tooOld [classes]bool
	for c := range classes {
		tooOld[c] = s.cfg.MaxAge > 0
	}
	for _, f := range files {
		if writing[f.seq] {
			continue
		}
		old := false
		if tooOld[f.class] {
			var ended bool
			buf, ended = readIndex(f.path, &x, buf)
			old = ended && s.age(f.path, &x) > s.cfg.MaxAge
			tooOld[f.class] = old // those after it are younger
		}
		full := size[ofPorts]+size[ofConnections] > room && (f.class == ofConnections || size[ofPorts] > room/2)
		if !old && !full {
			continue
		}
		if _, ended := readIndex(f.path, &x, nil); ended {
			s.countUnread(f.path, &x)
		}
		if err := os.Remove(f.path); err != nil && !isGone(err) {
			return fmt.Errorf("delete old history: %w", err)
		}
		size[f.class] -= f.size
	}
	s.mu.Lock()
	s.stats.Bytes = size[ofPorts] + size[ofConnections]
	s.mu.Unlock()
	return nil
}

// age is how long ago the last of a segment was: by the clock that nobody sets, unless that began anew
// since.
func (s *Store) age(path string, x *index) time.Duration {
	at := s.cfg.clock()
	if h, err := readHead(path); err == nil && h.boot == s.head.boot {
		return time.Duration(at.boot - min(at.boot, x.lastBoot))
	}
	return time.Duration(at.wall - x.lastWall)
}
