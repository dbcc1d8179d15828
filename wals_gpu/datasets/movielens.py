"""Reader of the MovieLens data sets that GroupLens publishes; they have to be downloaded by the user."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from wals_gpu.checks import as_path, number
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.datasets._items import in_column_order
from wals_gpu.errors import DataError

# Ratings file of each form, and the file of titles that lies beside it.
_FORMS = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}
# The columns of u.item from the sixth on, in its order.
_GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")


@dataclass(frozen=True)
class MovieLens:
    """A MovieLens data set.

    Attributes
    ----------
    interactions : Interactions
        (U, I), values are the ratings (0.5 to 5). Ids are MovieLens's numbers.
    items : Table
        ``item_id`` int64, ``summary`` (title and year), ``text`` ("The Matrix (1999). Genres: Action, Sci-Fi"). The
        first I rows are the columns of the matrix, in order, with empty texts where there is no title; movies without
        a rating follow.
    """

    interactions: Interactions
    items: pa.Table


def load_movielens(path: str | os.PathLike[str], *, min_rating: float = 0.0) -> MovieLens:
    """Read an unpacked MovieLens data set.

    Parameters
    ----------
    path : str or path
        The unpacked folder, or the ratings file in it: ``ratings.csv`` (20M, 25M, 32M, latest), ``ratings.dat`` (1M,
        10M) or ``u.data`` (100K). Titles come from ``movies.csv``, ``movies.dat`` or ``u.item`` beside it, if there.
    min_rating : float, default 0.0
        Ratings below are left out, and with them the users and items that have no other. The usual implicit-feedback
        protocols take 4.0.

    Returns
    -------
    MovieLens
        Users and items in increasing order of their ids.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or the folder has none of the three.
    DataError
        If the file cannot be parsed, or no rating is left.
    """
    path, min_rating = as_path("path", path), number("min_rating", min_rating)
    if path.is_dir():
        files = [path / name for name in _FORMS if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"path must have one of {', '.join(_FORMS)} in it (unpack the archive), got {path}")
        path = files[0]
    if not path.exists():
        raise FileNotFoundError(f"path must be an unpacked folder or the ratings file in it; there is no {path}")
    if path.name not in _FORMS:
        raise DataError(f"path must be a folder or a file named {', '.join(_FORMS)}, got {path}")
    ratings = _read_ratings(path)
    ratings = ratings.filter(pc.greater_equal(ratings["rating"], min_rating))
    if not len(ratings):
        raise DataError(f"min_rating must leave at least one rating in {path}, got {min_rating}")
    interactions = as_interactions(ratings, user_column="user", item_column="item", value_column="rating")

    titles = path.with_name(_FORMS[path.name])
    movies = _read_movies(titles) if titles.is_file() else []
    items = pa.table(
        {
            "item_id": pa.array([number for number, _, _ in movies], pa.int64()),
            "summary": pa.array([title for _, title, _ in movies], pa.string()),
            "text": pa.array([_describe(title, genres) for _, title, genres in movies], pa.string()),
        }
    )
    assert interactions.item_ids is not None
    return MovieLens(interactions, in_column_order(items, interactions.item_ids))


def _read_ratings(path: Path) -> pa.Table:
    """Columns user, item, rating of a ratings file."""
    types = {"user": pa.int64(), "item": pa.int64(), "rating": pa.float32()}
    names: list[str] | None
    if path.name == "ratings.csv":
        delimiter, names = ",", None  # the file says which column is which
        types = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float32()}
    elif path.name == "u.data":
        delimiter, names = "\t", ["user", "item", "rating", "timestamp"]
    else:  # "::" reads as ":" with empty columns in between
        delimiter, names = ":", ["user", "_1", "item", "_2", "rating", "_3", "timestamp"]
    try:
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(include_columns=list(types), column_types=types),
        ).rename_columns(["user", "item", "rating"])
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"{path} must be a MovieLens ratings file: {error}") from error


def _read_movies(path: Path) -> list[tuple[int, str, list[str]]]:
    """(id, title, genres) of each movie, in the order of the file."""
    if path.name == "movies.csv":
        kinds = {"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()}
        columns = pyarrow.csv.ConvertOptions(include_columns=list(kinds), column_types=kinds)
        try:
            rows = pyarrow.csv.read_csv(path, convert_options=columns).to_pylist()
        except (pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{path} must list MovieLens titles: {error}") from error
        if any(row["movieId"] is None for row in rows):
            raise DataError(f"{path} must list MovieLens titles, each with its movieId; one has none")
        return [(row["movieId"], _article_first(row["title"]), row["genres"].split("|")) for row in rows]

    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:  # 100K and 1M; the later sets are UTF-8
        text = content.decode("latin-1")
    movies = []
    for line in filter(None, re.split(r"\r?\n", text)):
        try:
            if path.name == "movies.dat":
                number, title, genres = line.split("::")
                names = genres.split("|")
            else:
                number, title, *rest = line.split("|")
                names = [name for name, flag in zip(_GENRES_100K, rest[3:], strict=True) if flag == "1"]
            movies.append((int(number), _article_first(title), names))
        except ValueError as error:
            raise DataError(f"{path} must list MovieLens titles, got the line {line!r}") from error
    return movies


def _article_first(title: str) -> str:
    """'Matrix, The (1999)' -> 'The Matrix (1999)'."""
    return re.sub(r"^(.*), (The|A|An)( \(\d{4}\))?$", r"\2 \1\3", title.strip())


def _describe(title: str, genres: list[str]) -> str:
    known = [genre for genre in genres if genre not in ("unknown", "(no genres listed)")]
    return f"{title}. Genres: {', '.join(known)}" if known else title
