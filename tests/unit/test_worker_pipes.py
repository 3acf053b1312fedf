"""Lines over pipes: complete and in order, in whatever pieces they arrive."""

from __future__ import annotations

import os
import threading

from worker.wire.pipes import LineSplitter, LineWriter, read_lines, read_some


def test_lines_of_many_threads_arrive_whole() -> None:
    read_fd, write_fd = os.pipe()
    writer = LineWriter(write_fd)
    long = {bytes([letter]) * 300_000 for letter in b"abcd"}  # more than a pipe takes at once

    def write(line: bytes) -> None:
        writer.write(line + b"\n")

    threads = [threading.Thread(target=write, args=(line,)) for line in long]
    for thread in threads:
        thread.start()
    found = []
    for line in read_lines(read_fd):
        found.append(line)
        if len(found) == len(long):
            os.close(write_fd)
    assert set(found) == long
    os.close(read_fd)


def test_a_line_that_is_too_long_is_cut_and_the_last_one_needs_no_end() -> None:
    splitter = LineSplitter(longest=4)
    assert splitter.split(b"ab") == []
    assert splitter.split(b"c\n\nde") == [b"abc", b""]
    assert splitter.split(b"fgh") == [b"defgh"]
    assert splitter.rest() == []
    splitter.split(b"x")
    assert splitter.rest() == [b"x"]


def test_a_non_blocking_pipe_distinguishes_no_data_from_the_end() -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    assert read_some(read_fd) is None
    os.close(write_fd)
    assert read_some(read_fd) == b""
    os.close(read_fd)
