"""The picture of a soak: memory and descriptors of each part over time, and the kills."""

from pathlib import Path

from matplotlib import pyplot

from benchmarks.page.page import Record, save

MIB = 1 << 20


def draw(record: Record, path: Path) -> None:
    """Draw a result's samples; needs matplotlib."""
    figure, (memory, files) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6))
    for part, samples in record["samples"].items():
        minutes = [sample[0] / 60 for sample in samples]
        memory.plot(minutes, [sample[1] / MIB for sample in samples], ".", markersize=3, label=part)
        files.plot(minutes, [sample[2] for sample in samples], ".", markersize=3, label=part)
    for axis in (memory, files):
        for at_s in record["kills_s"]:
            axis.axvline(at_s / 60, color="grey", linewidth=0.6, linestyle=":")
        axis.set_ylim(bottom=0)
    memory.set_ylabel("memory, MiB")
    memory.legend()
    files.set_ylabel("open descriptors")
    files.set_xlabel("minutes; dotted: the engine is killed")
    save(figure, path)
