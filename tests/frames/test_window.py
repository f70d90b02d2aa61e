"""Which frames a session keeps."""

from __future__ import annotations

import pytest

from robometer.errors import InputError
from robometer.frames.window import Window, kept_positions


def test_every_second_frame_is_kept_once_all_are_too_many() -> None:
    assert [kept_positions(n, 4).tolist() for n in range(1, 11)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 2, 4],
        [0, 2, 4, 5],
        [0, 2, 4, 6],
        [0, 4, 7],
        [0, 4, 8],
        [0, 4, 8, 9],
    ]
    assert kept_positions(100, None).tolist() == list(range(100))
    assert kept_positions(100, 1).tolist() == kept_positions(100, 2).tolist() == [0, 99]


@pytest.mark.parametrize("max_frames", [2, 3, 8, None])
def test_a_window_holds_the_frames_that_score_the_next_one(max_frames: int | None) -> None:
    window = Window[int](max_frames)
    for number in range(70):
        before = list(window.items)
        dropped = window.make_room()
        assert dropped == (before != window.items)
        assert [*window.items, number] == kept_positions(number + 1, max_frames).tolist()
        window.add(number)
        restored = Window[int](max_frames)
        restored.restore(number + 1, window.items)
        assert vars(restored) == vars(window)


def test_a_window_is_not_restored_from_other_frames() -> None:
    with pytest.raises(InputError, match=r"after 6 frames a session holds 3 of them \(every 2\. one, .*, not 4"):
        Window[int](4).restore(6, [0, 1, 2, 3])
    with pytest.raises(InputError):
        Window[int](4).restore(-1, [])
