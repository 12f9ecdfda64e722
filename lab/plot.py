"""Pictures of a case: rate, queue delay and pictures a second over time, under each other."""

import matplotlib
from PIL import Image

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

CAPACITY, CARRIED, ESTIMATE, SENT = "#999999", "#1f77b4", "#d62728", "#ff9f1c"
FROZEN = "#f4c2c2"


class Plot:
    def __init__(self, name, title, start, end, marks=()):
        self.name, self.title = name, title
        self.start, self.end, self.marks = start, end, marks
        self.panels = []

    def rates(self, carried, changes, figures):
        """What the link can, what it carried, and what the camera thought of it."""

        def draw(axes):
            times, rates = zip(*carried.rate_series(self.start, self.end))
            top = max(*rates, 300) * 1.6
            axes.plot(self.to_zero(times), rates, color=CARRIED, linewidth=1.2, label="carried")
            times, capacity = steps(changes, self.start, self.end)
            if min(rate or top for rate in capacity) < top:
                axes.step(self.to_zero(times), capacity, where="post", color=CAPACITY, linewidth=1, label="capacity", zorder=1)
            known = [(t, estimate) for t, estimate, _, _ in figures if estimate and self.start <= t <= self.end]
            if known:
                times, estimates = zip(*known)
                axes.plot(self.to_zero(times), estimates, color=ESTIMATE, linewidth=1, label="estimate")
            axes.set_ylim(0, top)
            axes.set_ylabel("kbit/s")
            axes.legend(loc="upper right", fontsize=7, ncols=3, frameon=False)

        self.panels.append(draw)

    def rates_of(self, carried):
        """What several viewers' links carried, by their names."""

        def draw(axes):
            for (name, its), color in zip(carried.items(), (CARRIED, SENT, ESTIMATE)):
                times, rates = zip(*its.rate_series(self.start, self.end, step=0.5))
                axes.plot(self.to_zero(times), rates, color=color, linewidth=1.2, label=name)
            axes.set_ylim(bottom=0)
            axes.set_ylabel("kbit/s")
            axes.legend(loc="upper right", fontsize=7, ncols=3, frameon=False)

        self.panels.append(draw)

    def queue(self, carried):
        self.line(carried.queue_series(self.start, self.end), "queue delay, ms")

    def loss(self, carried):
        self.line(carried.loss_series(self.start, self.end), "packets lost, %")

    def line(self, series, label):
        def draw(axes):
            times, values = zip(*series)
            axes.plot(self.to_zero(times), values, color=CARRIED, linewidth=1)
            axes.set_ylim(bottom=0)
            axes.set_ylabel(label)

        self.panels.append(draw)

    def frames(self, seen):
        """Pictures shown a second; times without a new picture for over a quarter of a second are shaded."""

        def draw(axes):
            times = seen.shown(self.start, self.end)
            window, at, series = 0.5, self.start, []
            while at + window <= self.end:
                series.append((at + window / 2, sum(at <= t < at + window for t in times) / window))
                at += 0.25
            axes.plot(self.to_zero(t for t, _ in series), [fps for _, fps in series], color=CARRIED, linewidth=1)
            for at, gap in seen.freezes(self.start, self.end, 0.25):
                axes.axvspan(at - self.start, at + gap - self.start, color=FROZEN, linewidth=0)
            axes.set_ylim(0, 40)
            axes.set_ylabel("pictures/s")

        self.panels.append(draw)

    def to_zero(self, times):
        return [t - self.start for t in times]

    def save(self, folder):
        """Gives the file's path."""
        height = 0.5 + 1.5 * len(self.panels)
        figure, axes = pyplot.subplots(len(self.panels), 1, sharex=True, figsize=(7.2, height), squeeze=False)
        for draw, its in zip(self.panels, axes[:, 0]):
            draw(its)
            its.tick_params(labelsize=7)
            its.yaxis.label.set_size(7)
            its.grid(color="#e5e5e5", linewidth=0.5)
            for at in self.marks:
                its.axvline(at - self.start, color="black", linewidth=0.7, linestyle=":")
        axes[0, 0].set_title(self.title, fontsize=9)
        axes[-1, 0].set_xlim(0, self.end - self.start)
        axes[-1, 0].set_xlabel("s", fontsize=7)
        figure.tight_layout(pad=0.5)
        path = folder / f"{self.name}.png"
        figure.savefig(path, dpi=100)
        pyplot.close(figure)
        # A few colours make a third of the file.
        Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)
        return path


def steps(changes, start, end):
    """The capacity over time in kbit/s, from what the link was told; 0 where it has none."""
    rate, before, later = 0, 0, []
    for at, what in changes:
        rate = what.get("down", {}).get("rate", rate)
        if at <= start:
            before = rate
        elif at < end:
            later.append((at, rate))
    points = [(start, before), *later, (end, later[-1][1] if later else before)]
    return [at for at, _ in points], [rate / 1000 or None for _, rate in points]
