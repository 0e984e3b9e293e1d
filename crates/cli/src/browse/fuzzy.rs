//! Finding names by a few of their letters.

/// How well a query fits a name, and where: the places of its letters in the name, counted in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) score: i64,
    pub(crate) places: Vec<usize>,
}

/// Whether all words of `query` stand in `name`, in any order, each as a run of letters or, failing that, as letters one after
/// another with others between them. Case matters only where the query has capitals.
///
/// The score is higher for runs, for beginnings of a name's parts, for the end of the name, and for short names.
pub(crate) fn find(name: &str, query: &str) -> Option<Found> {
    let exact = query.chars().any(char::is_uppercase);
    if !query
        .split_whitespace()
        .all(|word| follows(name, word, exact))
    {
        return None; // without a look at places: most names
    }
    let fold = |c: char| match exact {
        true => c,
        false => c.to_lowercase().next().unwrap_or(c),
    };
    let letters: Vec<char> = name.chars().map(fold).collect();
    let mut found = Found {
        score: -(letters.len() as i64) / 8,
        places: Vec::new(),
    };
    for word in query.split_whitespace() {
        let word: Vec<char> = word.chars().map(fold).collect();
        let (score, mut places) = run(&letters, &word).or_else(|| scattered(&letters, &word))?;
        found.score += score;
        found.places.append(&mut places);
    }
    found.places.sort_unstable();
    found.places.dedup();
    Some(found)
}

/// Whether a word's letters stand in a name one after another.
fn follows(name: &str, word: &str, exact: bool) -> bool {
    let mut rest = name.chars();
    let same = |a: char, b: char| match (exact, a.is_ascii() && b.is_ascii()) {
        (true, _) => a == b,
        (false, true) => a.eq_ignore_ascii_case(&b),
        (false, false) => a.to_lowercase().next() == b.to_lowercase().next(),
    };
    word.chars()
        .all(|letter| rest.any(|other| same(other, letter)))
}

/// The last run of the word's letters, because the end of a name says most; one at the beginning of a part is better.
fn run(letters: &[char], word: &[char]) -> Option<(i64, Vec<usize>)> {
    let starts = letters
        .windows(word.len())
        .enumerate()
        .filter(|(_, window)| *window == word)
        .map(|(start, _)| start);
    let score = |start: usize| {
        let ends_part = matches!(letters.get(start + word.len()), None | Some('.'));
        let bonus = 8 * i64::from(begins_part(letters, start)) + 4 * i64::from(ends_part);
        16 * word.len() as i64 + bonus
    };
    let best = starts.max_by_key(|&start| score(start))?;
    Some((score(best), (best..best + word.len()).collect()))
}

/// The word's letters in order, as late in the name as they can be.
fn scattered(letters: &[char], word: &[char]) -> Option<(i64, Vec<usize>)> {
    let mut places = Vec::with_capacity(word.len());
    let mut end = letters.len();
    for letter in word.iter().rev() {
        end = letters[..end].iter().rposition(|other| other == letter)?;
        places.push(end);
    }
    places.reverse();
    let joined = places.windows(2).filter(|pair| pair[1] == pair[0] + 1);
    let begun = places.iter().filter(|&&place| begins_part(letters, place));
    let spread = (places.last()? - places.first()?) as i64;
    let score = 4 * joined.count() as i64 + 4 * begun.count() as i64 - spread / 4;
    Some((score, places))
}

fn begins_part(letters: &[char], place: usize) -> bool {
    place == 0 || matches!(letters[place - 1], '.' | '_' | '/' | ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(query: &str, names: &[&'static str]) -> Option<&'static str> {
        let scored = names
            .iter()
            .filter_map(|name| Some((find(name, query)?.score, *name)));
        scored.max_by_key(|(score, _)| *score).map(|(_, name)| name)
    }

    #[test]
    fn what_fits() {
        let name = "model.layers.10.attn.to_q.weight";
        for query in [
            "",
            "attn",
            "ATTN".to_lowercase().as_str(),
            "q wei",
            "weight layers",
            "mdl.wgt",
            "l10q",
        ] {
            assert!(find(name, query).is_some(), "{query}");
        }
        assert_eq!(find("GRÖSSE.ß", "größe"), None);
        assert!(find("GRÖSSE.ß", "gröss").is_some());
        for query in ["ATTN", "attm", "qq weight", "thgiew"] {
            assert!(find(name, query).is_none(), "{query}");
        }
    }

    #[test]
    fn what_fits_best() {
        assert_eq!(best("attn.w", &["a.attns.w", "a.attn.w"]), Some("a.attn.w"));
        assert_eq!(best("l1", &["x.l10.w", "x.l1.w"]), Some("x.l1.w"));
        assert_eq!(
            best("bias", &["b.i.a.s", "x.long.name.bias"]),
            Some("x.long.name.bias")
        );
    }

    #[test]
    fn places_are_those_of_the_letters() {
        assert_eq!(find("a.b.weight", "we").unwrap().places, [4, 5]);
        assert_eq!(find("größe.x", "ß x").unwrap().places, [3, 6]);
        assert_eq!(find("", "a"), None);
    }
}
