"""Records of a run by budget, image and attack."""

from collections.abc import Iterable, Sequence

from evaluation.results.records import Record


class History:
    """The records so far: at first those from before a start."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._found: dict[tuple[float, int], dict[str, Record]] = {}
        self.add(records)

    def add(self, records: Iterable[Record]) -> None:
        """Add records; one of the same image, budget and attack takes the place of the former."""
        for record in records:
            self._found.setdefault((record.eps, record.image), {})[record.attack] = record

    def of(self, eps: float, rows: Sequence[int], attacks: Iterable[str]) -> list[Record]:
        """The records of some images within a budget, where there are any, attack by attack."""
        images = [self._found.get((eps, row), {}) for row in rows]
        return [image[attack] for attack in attacks for image in images if attack in image]

    def complete(self, eps: float, rows: Sequence[int], attacks: Sequence[str]) -> list[Record]:
        """The same if none of these records is missing, otherwise none."""
        found = self.of(eps, rows, attacks)
        return found if len(found) == len(rows) * len(attacks) else []
