//! What a URL means: which kind of store, which object, and what of it may be shown or kept.

use url::Url;

use crate::error::StoreError;
use crate::location::{self, SCHEMES};

/// Parts of a query that sign a request: they differ each time and say nothing about which object is meant.
const SIGNING: [&str; 18] = [
    "awsaccesskeyid",
    "googleaccessid",
    "signature",
    "expires",
    "policy",
    "key-pair-id",
    "sig",
    "se",
    "st",
    "sp",
    "sv",
    "sr",
    "spr",
    "skoid",
    "sktid",
    "skt",
    "ske",
    "sks",
];

/// Who answers, and how requests are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http,
    S3,
    Gcs,
    Azure,
}

/// One object behind a URL.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) url: Url,
    /// For messages: without secrets.
    pub(crate) shown: String,
    /// Sent as `Authorization: Bearer` to the URL's own host, and never shown.
    pub(crate) token: Option<String>,
}

impl Place {
    /// Reads a URL. `setting` gives settings by name, as the environment does.
    pub(crate) fn parse(
        text: &str,
        setting: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Place, StoreError> {
        let bad = |problem: &str| StoreError::BadLocation {
            location: location::redacted(text),
            problem: problem.to_owned(),
        };
        let scheme = text.split("://").next().unwrap_or("").to_ascii_lowercase();
        if !SCHEMES.contains(&scheme.as_str()) {
            return Err(bad(&format!(
                "URLs with {scheme}:// are not read; those with {}:// are",
                SCHEMES.join("://, ")
            )));
        }
        let (spelled, token) = match scheme.as_str() {
            "hf" => (
                hub_url(text, setting).ok_or_else(|| {
                    bad(
                        "this must read hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE, \
                         with datasets/ or spaces/ before OWNER if it is one",
                    )
                })?,
                setting("HF_TOKEN").filter(|token| is_visible(token)),
            ),
            _ => (text.to_owned(), None),
        };
        let mut url = Url::parse(&spelled).map_err(|error| bad(&format!("not a URL: {error}")))?;
        url.set_fragment(None);
        if url.host_str().is_none_or(str::is_empty) {
            return Err(bad("it names no host or bucket"));
        }
        if url.path().trim_matches('/').is_empty() {
            return Err(bad("it names no file; add its path"));
        }
        let kind = match scheme.as_str() {
            "s3" | "s3a" => Kind::S3,
            "gs" => Kind::Gcs,
            "az" | "abfs" | "abfss" => Kind::Azure,
            _ => Kind::Http,
        };
        Ok(Place {
            kind,
            shown: location::redacted(url.as_str()),
            url,
            token,
        })
    }

    /// What the cache knows the object by: the URL without user, and without those parts of the query that sign it.
    pub(crate) fn identity(&self) -> String {
        let mut url = self.url.clone();
        // Neither fails for URLs with a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let kept: Vec<(String, String)> = self
            .url
            .query_pairs()
            .filter(|(name, _)| !signs(name))
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        url.into()
    }

    /// The file of this name beside this one; names are plain (no `..`), as `shards` has checked.
    pub(crate) fn beside(&self, name: &str) -> Place {
        let mut place = self.clone();
        if let Ok(mut segments) = place.url.path_segments_mut() {
            segments.pop().extend(name.split('/'));
        }
        place.shown = location::redacted(place.url.as_str());
        place
    }

    /// Whether this is an index of shards.
    pub(crate) fn is_index(&self) -> bool {
        self.url.path().ends_with(crate::shards::INDEX_SUFFIX)
    }
}

/// Whether a part of a query signs the request.
fn signs(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("x-amz-")
        || name.starts_with("x-goog-")
        || name.contains("token")
        || SIGNING.contains(&name.as_str())
}

/// Whether it can stand in a header.
fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The https URL of `hf://[datasets/|spaces/]owner/repo[@revision]/path`.
fn hub_url(text: &str, setting: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let rest = text.split_once("://")?.1;
    let (prefix, rest) = match rest.split_once('/') {
        Some((kind @ ("datasets" | "spaces"), rest)) => (format!("{kind}/"), rest),
        Some(("models", rest)) => (String::new(), rest),
        _ => (String::new(), rest),
    };
    let mut parts = rest.splitn(3, '/');
    let (owner, repo, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
    let parts = [owner, repo, revision];
    let odd =
        |part: &&str| part.is_empty() || part.starts_with('.') || part.contains(['?', '#', '@']);
    if parts.iter().any(odd) || path.is_empty() {
        return None;
    }
    let endpoint = setting("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
    let endpoint = endpoint.trim_end_matches('/');
    Some(format!(
        "{endpoint}/{prefix}{owner}/{repo}/resolve/{revision}/{path}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(text, &|_| None).expect(text)
    }

    #[test]
    fn kinds_follow_schemes() {
        for (text, kind) in [
            ("https://h/a", Kind::Http),
            ("HTTP://h/a", Kind::Http),
            ("s3://b/k/a.safetensors", Kind::S3),
            ("gs://b/k", Kind::Gcs),
            ("az://c/k", Kind::Azure),
            ("abfss://c@a.dfs.core.windows.net/k", Kind::Azure),
            ("hf://o/r/f", Kind::Http),
        ] {
            assert_eq!(place(text).kind, kind, "{text}");
        }
    }

    #[test]
    fn wrong_urls_say_what_to_do() {
        for (text, said) in [
            ("ftp://h/a", "https://"),
            ("https://h", "no file"),
            ("https://h/", "no file"),
            ("s3://bucket", "no file"),
            ("https:///a b:c/", ""),
            ("hf://owner/repo", "hf://OWNER"),
            ("hf://owner/../x", "hf://OWNER"),
            ("hf://o/r@/x", "hf://OWNER"),
        ] {
            let error = Place::parse(text, &|_| None).err().map(|e| e.to_string());
            assert!(
                error.as_ref().is_some_and(|e| e.contains(said)),
                "{text}: {error:?}"
            );
        }
    }

    #[test]
    fn the_hub_is_spelled_out() {
        for (text, url) in [
            (
                "hf://o/r/f.safetensors",
                "https://huggingface.co/o/r/resolve/main/f.safetensors",
            ),
            (
                "hf://o/r@v1/sub/f",
                "https://huggingface.co/o/r/resolve/v1/sub/f",
            ),
            (
                "hf://datasets/o/r/f",
                "https://huggingface.co/datasets/o/r/resolve/main/f",
            ),
        ] {
            assert_eq!(place(text).url.as_str(), url);
        }
        let own = |name: &str| match name {
            "HF_ENDPOINT" => Some("http://mirror:8/".to_owned()),
            "HF_TOKEN" => Some("hf_secret".to_owned()),
            _ => None,
        };
        let place = Place::parse("hf://o/r/f", &own).expect("a place");
        assert_eq!(place.url.as_str(), "http://mirror:8/o/r/resolve/main/f");
        assert_eq!(place.token.as_deref(), Some("hf_secret"));
        assert!(
            Place::parse("https://h/f", &own)
                .expect("a place")
                .token
                .is_none()
        );
    }

    #[test]
    fn signatures_are_no_part_of_the_identity() {
        let signed = "https://u:p@h/a?X-Amz-Signature=1&id=5&sig=2&Expires=3&access_token=4";
        assert_eq!(place(signed).identity(), "https://h/a?id=5");
        assert_eq!(place(signed).shown, "https://h/a?…");
        assert_ne!(
            place("https://h/a?id=5").identity(),
            place("https://h/a?id=6").identity()
        );
    }

    #[test]
    fn shards_lie_beside_the_index() {
        let index = place("https://h/m%20x/model.safetensors.index.json?sig=1");
        assert!(index.is_index());
        let shard = index.beside("sub/a b%2e%2e.safetensors");
        assert_eq!(
            shard.url.as_str(),
            "https://h/m%20x/sub/a%20b%252e%252e.safetensors?sig=1"
        );
        assert_eq!(index.beside("?x#y").url.path(), "/m%20x/%3Fx%23y");
        assert_eq!(index.beside("../x").url.path(), "/m%20x/x");
    }
}
