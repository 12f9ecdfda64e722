"""The list of cases, and what becomes of one."""

CASES = {}


def case(name, title, seconds):
    """Registers a case; `seconds` is about how long it takes."""

    def register(function):
        CASES[name] = function
        function.title, function.seconds = title, seconds
        return function

    return register


class Verdict:
    """What a case measured against its bars."""

    def __init__(self, name, title):
        self.name, self.title = name, title
        self.bars = []
        self.notes = {}
        self.plots = []
        self.error = None

    def bar(self, what, measured, limit, unit="", least=False):
        """A measured figure and its limit: the most it may be, or with `least` the least. None: it never came."""
        kept = measured is not None and (measured >= limit if least else measured <= limit)
        self.bars.append({"what": what, "measured": measured, "limit": limit, "unit": unit, "least": least, "kept": kept})

    def holds(self, what, is_so, said=""):
        """Something that is so or not."""
        self.bars.append(
            {"what": what, "measured": said or ("yes" if is_so else "no"), "limit": "yes", "unit": "", "least": False, "kept": bool(is_so)}
        )

    def note(self, **figures):
        """Worth knowing, but nothing is promised."""
        self.notes |= figures

    def to_json(self):
        return {"name": self.name, "title": self.title, "error": self.error, "bars": self.bars, "notes": self.notes}
