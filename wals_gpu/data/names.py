"""What columns are usually called, and which one is meant where nobody says it.

A name is compared without case, accents, blanks and ``_ - . :``. One list of stems serves interactions and tables of
items: ``user`` stands for ``user``, ``user_id``, ``userID``, ``id_user``, ``user_nr``, ``username`` and the like.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Hashable, Sequence

import numpy as np

from wals_gpu.data.source import Source, listing
from wals_gpu.errors import DataError

__all__ = [
    "TIME_NAMES",
    "Missing",
    "choose_item",
    "choose_named",
    "choose_title",
    "choose_user",
    "choose_value",
    "count_usual",
    "id_names",
    "is_rating",
    "is_time",
    "item_names",
    "missing_error",
    "plain_name",
    "user_names",
    "usual_time",
]

# Of the second rank, a name is taken where none of the first one is there: sessions have users, tracks have artists.
_USERS = (
    "user", "customer", "client", "member", "reviewer", "listener", "reader", "viewer", "player", "buyer", "shopper",
    "subscriber", "person", "profile",
    "nutzer", "benutzer", "anwender", "kunde", "kunden", "mitglied", "mitglieds", "leser", "hörer", "spieler", "käufer",
    "utilisateur", "cliente", "usuario", "utente", "klant", "gebruiker",
)  # fmt: skip
_USERS_SECOND = (
    "visitor", "session", "account", "device", "household", "besucher", "sitzung", "sitzungs", "konto", "visiteur",
)  # fmt: skip
_ITEMS = (
    "item", "product", "movie", "film", "book", "track", "song", "game", "article", "video", "show", "anime", "recipe",
    "restaurant", "business", "place", "poi", "venue", "hotel", "course", "job", "news", "podcast", "episode",
    "listing", "app", "joke", "paper", "content",
    "artikel", "produkt", "ware", "waren", "buch", "spiel", "lied", "rezept", "kurs", "sendung",
    "produit", "articulo", "producto", "libro", "livre", "pelicula", "articolo", "prodotto", "produto", "artigo",
)  # fmt: skip
_ITEMS_SECOND = (
    "artist", "album", "künstler", "isbn", "asin", "sku", "ean", "gtin", "upc", "url", "page", "seite",
)  # fmt: skip
# "no" and "nr" are numbers that name something; "name" and "title" name it as well, if nothing else does.
_ID_ENDINGS = ("id", "ids", "uid", "uuid", "guid", "no", "nr", "nummer", "number", "key", "code", "numero", "num")
# Before the stem, as Romance languages have it: "código de producto", "identifiant client".
_ID_BEGINNINGS = (
    "id", "code", "codigo", "codice", "cod", "ref", "reference", "referencia", "riferimento", "identifiant",
    "identificador", "identificativo", "numero", "num",
)  # fmt: skip
_OF = ("", "de", "du", "del", "di", "do")
_NAME_ENDINGS = ("name", "title", "titel", "bezeichnung")
_WHOLE = {"uid": "user", "userhash": "user", "stockcode": "item"}

_RATINGS = (
    "rating", "ratings", "stars", "score", "scores", "overall", "user_rating", "book_rating", "movie_rating",
    "review_score", "bewertung", "bewertungen", "wertung", "sterne", "punkte", "puntuacion", "calificacion",
    "note", "nota",
)  # fmt: skip
_VALUES = (
    "value", "count", "weight", "plays", "quantity", "play_count", "playcount", "listen_count", "listens", "views",
    "view_count", "clicks", "purchases", "purchase_count", "frequency", "freq", "qty", "interactions", "likes",
    "wert", "anzahl", "menge", "stückzahl", "häufigkeit", "gewicht", "quantite", "cantidad", "nombre_ecoutes", "valor",
    "quantidade", "quantita",
)  # fmt: skip
# 1 for yes, 0 for no: a row of a 0 is not a like.
_FLAGS = (
    "like", "liked", "is_like", "is_liked", "click", "clicked", "is_click", "is_clicked", "purchased", "bought",
    "is_purchased", "gefällt", "gekauft", "geklickt",
)  # fmt: skip
# May be a remark or a kind in words as well: only a column of numbers is taken for a value.
_DOUBTFUL = ("note", "nota", "score", "punkte", *_FLAGS)
TIME_NAMES = (
    "timestamp", "time", "datetime", "date", "event_time", "event_timestamp", "created_at", "ts", "unix_time",
    "unix_review_time", "review_time", "review_date", "order_date", "invoice_date", "purchase_date", "played_at",
    "zeitstempel", "datum", "zeit", "uhrzeit", "bestelldatum", "kaufdatum", "fecha", "fecha_hora", "horodatage", "data",
)  # fmt: skip
_TITLES = (
    "title", "titel", "titre", "titulo", "titolo", "item_title", "item_name", "name", "bezeichnung", "product_title",
    "product_name", "movie_title", "original_title", "book_title", "track_name", "track_title", "song_title",
    "song_name", "game_name", "produktname", "artikelname", "artikelbezeichnung", "produktbezeichnung", "nom",
    "item_names", "label", "track", "song", "movie", "film", "book", "game", "artist_name", "artist",
)  # fmt: skip
_TEXTS = (
    "text", "texts", "description", "beschreibung", "beschreibungstext", "summary", "overview", "abstract", "plot",
    "synopsis", "content", "body", "descripcion", "produktbeschreibung", "product_description", "zusammenfassung",
)  # fmt: skip


def plain_name(name: Hashable) -> str:
    """A name without what people write differently."""
    text = re.sub(r":(token|float)(_seq)?$", "", str(name).strip().lower())  # as RecBole's files have it
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[_\-\s.:]", "", text)


def _plain(names: Sequence[str]) -> dict[str, int]:
    return {plain_name(name): place for place, name in reversed(list(enumerate(names)))}


@functools.cache
def _forms(stems: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """Each name that means one of the stems: the stem, and how well it does (0 best)."""
    found: dict[str, tuple[str, int]] = {}
    for stem in map(plain_name, stems):
        for ending in _NAME_ENDINGS:
            found.setdefault(stem + ending, (stem, 2))
        found[stem] = (stem, 1)
        for ending in _ID_ENDINGS:
            found[stem + ending] = (stem, 0)
        for beginning in _ID_BEGINNINGS:
            for of in _OF:
                found[beginning + of + stem] = (stem, 0)
    found |= {name: (stem, 0) for name, stem in _WHOLE.items() if stem in stems}
    return found


_PLAIN_RATINGS, _PLAIN_VALUES, _PLAIN_TIMES = _plain(_RATINGS), _plain((*_RATINGS, *_VALUES)), _plain(TIME_NAMES)
_PLAIN_FLAGS, _PLAIN_DOUBTFUL = _plain(_FLAGS), _plain(_DOUBTFUL)


class Missing(Exception):
    """A column that is not there or not unique; `args[0]` says which and why. Several are one error."""


def choose_named(source: Source, column: Hashable, argument: str) -> Hashable:
    """The column that was named.

    Raises
    ------
    Missing
    TypeError
        The argument is not a name.
    """
    is_name = isinstance(column, Hashable) and (np.isscalar(column) or not hasattr(column, "__array__"))
    if not is_name or isinstance(column, bool) or hasattr(column, "__arrow_c_array__"):
        kind = f"{type(column).__module__.partition('.')[0]}.{type(column).__name__}"
        raise TypeError(
            f"{argument} must be the name of a column of {source.what}, got {kind.removeprefix('builtins.')}"
        )
    matches = [name for name in source.names if name == column]
    if len(matches) == 1:
        return matches[0]
    raise Missing(f"{argument}={column!r} is {'not there' if not matches else 'not unique'}")


def choose_user(source: Source, column: Hashable | None, argument: str = "user_column") -> Hashable:
    """The column of users, by its usual name where None is given."""
    return _choose(source, column, argument, (_USERS, _USERS_SECOND))


def choose_item(source: Source, column: Hashable | None, argument: str = "item_column") -> Hashable:
    """The column of items, by its usual name where None is given."""
    return _choose(source, column, argument, (_ITEMS, _ITEMS_SECOND))


def _choose(source: Source, column: Hashable | None, argument: str, ranks: Sequence[tuple[str, ...]]) -> Hashable:
    if column is not None:
        return choose_named(source, column, argument)
    for stems in ranks:
        forms = _forms(stems)
        matches = [(name, *forms[plain]) for name in source.names if (plain := plain_name(name)) in forms]
        if not matches:
            continue
        # user_id rather than user or username, item_id rather than product; which of user_id and customer_id, nobody
        # can know, nor which of movie_id and book.
        best = min(form for _, _, form in matches)
        if best < 2:
            matches = [match for match in matches if match[2] < 2]
        names = [(name, stem) for name, stem, form in matches if form == best]
        of_one = len({stem for _, stem, _ in matches}) == 1
        if len(names) == 1 and (of_one or (best == 0 and names[0][1] == stems[0])):
            return names[0][0]
        listed = ", ".join(repr(name) for name, _, _ in matches)
        raise Missing(f"{argument} must say which of {listed} to use")
    stem = ranks[0][0]
    raise Missing(f"{argument} must be given, since no column has a usual name such as '{stem}_id' or '{stem}'")


def choose_value(source: Source, taken: Sequence[Hashable] = ()) -> Hashable | None:
    """The column of values by its usual name, but none that is `taken`; None where there is none.

    Raises
    ------
    Missing
        There are several.
    """
    for known in (_PLAIN_VALUES, _PLAIN_FLAGS):  # how often or how much, rather than whether
        matches = [
            name
            for name in source.names
            if name not in taken
            and (plain := plain_name(name)) in known
            and (plain not in _PLAIN_DOUBTFUL or _are_numbers(source.first(name)))
        ]
        if len(matches) > 1:
            raise Missing(f"value_column must say which of {', '.join(map(repr, matches))} to use")
        if matches:
            return matches[0]
    return None


def _are_numbers(values: Sequence[object]) -> bool:
    """Whether they are numbers, or yes and no, which are better refused where a number is wanted than passed over."""
    try:
        for value in values:
            if value not in ("", None) and str(value).lower() not in ("true", "false", "<na>"):
                float(str(value).replace(",", "."))
    except ValueError:
        return False
    return True


def is_rating(name: Hashable) -> bool:
    """Whether a column is named as one of ratings, in which a low number is a dislike."""
    return plain_name(name) in _PLAIN_RATINGS


def is_time(name: Hashable) -> bool:
    """Whether a column is named as one of times."""
    return plain_name(name) in _PLAIN_TIMES


def usual_time(names: Sequence[Hashable]) -> Hashable | None:
    """The column that is named like one of times, if there is exactly one."""
    matches = [name for name in names if is_time(name)]
    return matches[0] if len(matches) == 1 else None


def choose_title(names: Sequence[Hashable], *, texts: bool = False) -> Hashable | None:
    """The column of titles by its usual name, the most usual first; `texts`: of a longer text, where there is one."""
    order = _plain((*_TEXTS, *_TITLES) if texts else _TITLES)
    matches = sorted((order[plain], name) for name in map(str, names) if (plain := plain_name(name)) in order)
    return matches[0][1] if matches else None


def count_usual(names: Sequence[str]) -> int:
    """How many of the names are usual ones of users, items, values or times."""
    known = [_forms(stems) for stems in (_USERS, _USERS_SECOND, _ITEMS, _ITEMS_SECOND)]
    return sum(
        any(plain in forms for forms in known) or plain in _PLAIN_VALUES or plain in _PLAIN_TIMES
        for plain in map(plain_name, names)
    )


def id_names(names: Sequence[Hashable]) -> tuple[list[Hashable], list[Hashable]]:
    """Those of users' or items' ids: that can be nothing else (item_id, userId, id), and that can be (book, player)."""
    sure: list[Hashable] = []
    doubtful: list[Hashable] = []
    for name in names:
        plain = plain_name(name)
        forms = [
            known[plain][1]
            for ranks in (_USERS, _USERS_SECOND, _ITEMS, _ITEMS_SECOND)
            if plain in (known := _forms(ranks))
        ]
        if forms and min(forms) < 2:
            (doubtful if min(forms) else sure).append(name)
        elif plain == "id":
            sure.append(name)
    return sure, doubtful


def user_names() -> frozenset[str]:
    """Every name that means a column of users, as :func:`plain_name` writes it."""
    return frozenset(_forms(_USERS)) | frozenset(_forms(_USERS_SECOND))


def item_names() -> frozenset[str]:
    """The same of items."""
    return frozenset(_forms(_ITEMS)) | frozenset(_forms(_ITEMS_SECOND))


def missing_error(source: Source, problems: Sequence[str], also: str = "") -> DataError:
    """One error of all columns that are missing."""
    remark = f"; {source.remark}" if source.remark else ""
    return DataError(f"{'; '.join(problems)}; {source.what} has the columns {listing(source.names)}{also}{remark}")
