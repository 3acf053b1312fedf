"""Sounds come out as `ffmpeg` decodes them and as torchaudio resamples them, without either."""

from __future__ import annotations

import importlib
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from jobs.data.rows import RowError
from jobs.errors import InvalidInput
from tests.support.real_speech import write_sound
from worker.models.media import sounds
from worker.models.media.resampling import resample
from worker.models.media.sounds import decode_sound
from worker.models.media.wav import plain_wav

RATE = 16_000
NOISE = np.random.default_rng(0).standard_normal(8000).clip(-4, 4) / 5


def _wav(kind: int, bits: int, body: bytes, *, channels: int = 1, rate: int = RATE, extensible: bool = False) -> bytes:
    width = channels * bits // 8
    header = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, rate, rate * width, width, bits)
    if extensible:
        header += struct.pack("<HHIH", 22, bits, 4, kind) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    chunks = b"WAVEfmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


_DEEP = (NOISE * 2**23).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
FILES = {
    "8 bits": _wav(1, 8, (NOISE * 127 + 128).astype(np.uint8).tobytes()),
    "16 bits": _wav(1, 16, (NOISE * 32_767).astype("<i2").tobytes()),
    "24 bits": _wav(1, 24, _DEEP),
    "24 bits, extensible": _wav(1, 24, _DEEP, extensible=True),
    "32 bits": _wav(1, 32, (NOISE * 2**31).astype("<i4").tobytes()),
    "floats": _wav(3, 32, NOISE.astype("<f4").tobytes()),
    "doubles": _wav(3, 64, NOISE.astype("<f8").tobytes()),
    "two channels": _wav(1, 16, (NOISE * 32_767).astype("<i2").tobytes(), channels=2),
}


@pytest.mark.parametrize("rate", [RATE, 11_025, 44_100])
@pytest.mark.parametrize("name", FILES)
def test_plain_wav_files_equal_ffmpegs_decoding(name: str, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    ours = decode_sound(FILES[name], rate, max_seconds=10)
    monkeypatch.setattr(sounds, "plain_wav", lambda data: None)
    assert np.array_equal(ours, decode_sound(FILES[name], rate, max_seconds=10))


@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "layout"),
    [
        ("wav", "pcm_s16le", 8000, "mono"),
        ("wav", "pcm_mulaw", 44_100, "stereo"),
        ("flac", "flac", 22_050, "mono"),
        ("ogg", "libopus", 48_000, "stereo"),
        ("webm", "libopus", 48_000, "mono"),
        ("m4a", "aac", 44_100, "mono"),
        ("mp3", "libmp3lame", 16_000, "mono"),
    ],
)
def test_other_files_are_decoded_at_the_models_rate(
    tmp_path: Path, suffix: str, codec: str, rate: int, layout: str
) -> None:
    av = pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    tone = np.sin(2 * math.pi * 440 * np.arange(rate) / rate).astype(np.float32) / 4
    path = tmp_path / f"sound.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        samples = np.stack([tone] * (2 if layout == "stereo" else 1))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.rate = rate
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.codec_context.frame_size or None)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    found = decode_sound(path.read_bytes(), RATE, max_seconds=10)
    assert abs(found.size - RATE) < RATE / 10
    spectrum = np.abs(np.fft.rfft(found[: RATE // 2]))
    assert abs(spectrum.argmax() * 2 - 440) <= 2
    loud = math.sqrt(2) if layout == "stereo" else 1  # FFmpeg's mix of two equal channels
    middle = found[RATE // 4 : RATE // 2]
    assert math.sqrt(np.square(middle).mean()) == pytest.approx(loud / 4 / math.sqrt(2), rel=0.15)


@pytest.mark.parametrize("codec", ["pcm_s16le", "adpcm_ima_wav", "libmp3lame"])
def test_a_wav_file_with_a_long_header_is_heard_whole(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    content = write_sound(tmp_path / "sound.wav", np.tile(NOISE, 40).astype(np.float32), 44_100, codec, "stereo")
    data = content.read_bytes()
    comment = b"LIST" + struct.pack("<I", 300_000) + b"INFOICMT" + struct.pack("<I", 299_988) + b"x" * 299_988
    longer = data[:12] + comment + data[12:]
    found = [decode_sound(one, RATE, max_seconds=60) for one in (data, longer)]
    monkeypatch.setattr(sounds, "_WAV_OPTIONS", {})
    monkeypatch.setattr(sounds, "plain_wav", lambda data: None)
    expected = decode_sound(longer, RATE, max_seconds=60)
    assert expected.size == pytest.approx(NOISE.size * 40 * RATE / 44_100, rel=0.02)
    assert all(np.array_equal(one, expected) for one in found)


def test_resampling_is_the_windowed_sinc_of_torchaudio() -> None:
    wave = NOISE[:400].astype(np.float32)
    for rate in (8000, 22_050, 48_000):
        found = resample(wave, rate, RATE)
        assert found.size == math.ceil(wave.size * RATE / rate)
        highest = min(rate, RATE) * 0.99
        for place in (0, 7, found.size // 2, found.size - 1):
            distance = (np.arange(wave.size) / rate - place / RATE) * highest
            near = np.abs(distance) < 6
            weights = np.sinc(distance[near]) * np.cos(distance[near] * math.pi / 12) ** 2 * highest / rate
            assert found[place] == pytest.approx(float(weights @ wave[near]), abs=1e-4)
    assert resample(np.stack([wave, -wave]), 8000, RATE).shape == (2, 800)
    assert resample(wave, 15_999, RATE).code == "wrong_type"  # would take a kernel of gigabytes
    assert resample(wave, -1, RATE).code == "wrong_type"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"RIFF", "the file is damaged, or of an unknown kind"),
        (b"a text", "the file is damaged, or of an unknown kind"),
    ],
)
def test_a_file_that_is_no_sound_is_refused_in_plain_words(data: bytes, reason: str) -> None:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    error = decode_sound(data, RATE, max_seconds=60)
    assert isinstance(error, RowError)
    assert error.message == f"input 'audio' cannot be read as a sound: {reason}"


def test_sounds_that_are_none_are_row_errors() -> None:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
    for data in (b"", b"garbage", b"RIFF1234WAVE", playlist, b"\x89PNG\r\n\x1a\n", FILES["floats"][:44]):
        found = decode_sound(data, RATE, max_seconds=10)
        assert isinstance(found, RowError)
        assert found.code == "invalid_audio"
    assert decode_sound(FILES["16 bits"], RATE, max_seconds=0.4).code == "row_too_large"


def test_only_compressed_sound_files_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert decode_sound(FILES["16 bits"], RATE, max_seconds=10).size == NOISE.size
    slow = _wav(1, 16, bytes(800), rate=8000)
    assert plain_wav(slow) is not None
    for data, words in ((slow, "of 8000 samples per second"), (b"ID3 ...", "not a plain WAV file")):
        with pytest.raises(InvalidInput, match=rf"{words}.*pip install 'stoker\[audio\]'"):
            decode_sound(data, RATE, max_seconds=10)
    assert decode_sound(b"no sound at all", RATE, max_seconds=10).code == "invalid_audio"
