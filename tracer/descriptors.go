package tracer

import (
	"errors"
	"fmt"
	"io"
	"syscall"
)

// eachFds hands f the descriptor tables of every process, in parts that it must not keep.
func (s *Snapshotter) eachFds(f func([]bpfFds)) error {
	it, err := s.files.Open()
	if err != nil {
		return explain("open iter/task", err)
	}
	defer it.Close()
	var cursor bpfFdsCursor
	buf := make([]bpfFds, s.maps.Maps[snapshotMapFds].MaxEntries())
	for {
		last, err := s.readFds(it, &cursor, buf)
		if err != nil {
			return err
		}
		f(buf[:cursor.Rows])
		if last {
			s.hidden.Store(cursor.Init == 0)
			return nil
		}
	}
}

// readFds reads as many parts of descriptor tables as there is room for.
func (s *Snapshotter) readFds(it io.Reader, cursor *bpfFdsCursor, buf []bpfFds) (last bool, err error) {
	s.fdsTurn.Lock()
	defer s.fdsTurn.Unlock()
	cursor.Rows = 0
	if err := s.maps.Variables[snapshotVarFdsCursor].Set(cursor); err != nil {
		return false, fmt.Errorf("prepare iterator: %w", err)
	}
	// The iterator writes nothing to its reader: it ends with EOF, or with EAGAIN
	// when its map is full.
	_, readErr := it.Read(make([]byte, 1))
	if readErr != nil && readErr != io.EOF && !errors.Is(readErr, syscall.EAGAIN) {
		return false, fmt.Errorf("read iter/task: %w", readErr)
	}
	if err := s.maps.Variables[snapshotVarFdsCursor].Get(cursor); err != nil {
		return false, fmt.Errorf("read iterator: %w", err)
	}
	if err := readMemory(s.fds, 0, buf[:cursor.Rows]); err != nil {
		return false, fmt.Errorf("read descriptors: %w", err)
	}
	return readErr == io.EOF, nil
}
