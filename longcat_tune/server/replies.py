"""A request that is refused: what is told to the person, who reads it as a page, a fragment or JSON."""

from __future__ import annotations

from starlette.exceptions import HTTPException

from longcat_tune.server.texts import Language, catalogue, translate


class Refusal(HTTPException):
    """What the person asked cannot be done; the app turns it into a reply, wherever it is raised.

    Args:
        status: 400 to 499.
        text: name, value, rule and remedy: a key of the texts, or a sentence that exists in one language
            only, as those of the command line.
        **values: for the names in braces, when the text is a key.

    Attributes:
        status: 400 to 499.
        text: the sentence in English.
    """

    def __init__(self, status: int, text: str, **values: object) -> None:
        assert 400 <= status < 500, f"a refusal is told with 4xx, not {status}"
        self.status = status
        self._said, self._values = text, values
        self.text = self.told("en")
        super().__init__(status, self.text)

    def told(self, language: Language) -> str:
        """The sentence in a language, where there is one."""
        if self._said in catalogue():
            return translate(language, self._said, **self._values)
        return self._said
