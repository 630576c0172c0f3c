//! The manifests of artifacts, as far as packages need them.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::store::blobs::Digest;

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Of a layer: the path of the file.
const TITLE: &str = "org.opencontainers.image.title";

/// An artifact: a configuration and layers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// A blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    #[serde(serialize_with = "write_digest", deserialize_with = "read_digest")]
    pub(super) digest: Digest,
    #[serde(rename = "size")]
    pub(super) bytes: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Manifest {
    pub(super) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: None,
            config,
            layers,
            annotations: BTreeMap::new(),
        }
    }

    /// What it is of, in the word of whoever made it.
    pub(super) fn kind(&self) -> &str {
        self.artifact_type.as_ref().unwrap_or(&self.config.media_type)
    }
}

impl Descriptor {
    pub(super) fn new(media_type: &str, digest: Digest, bytes: u64) -> Descriptor {
        Descriptor { media_type: media_type.to_owned(), digest, bytes, annotations: BTreeMap::new() }
    }

    /// The same, as the file with this path.
    pub(super) fn named(self, path: &str) -> Descriptor {
        Descriptor { annotations: BTreeMap::from([(TITLE.to_owned(), path.to_owned())]), ..self }
    }

    /// The path of the file.
    pub(super) fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }
}

/// A digest as registries write it: with the algorithm, of which only this one is known.
pub(super) fn sha256(text: &str) -> Option<Digest> {
    text.strip_prefix("sha256:").filter(|digits| digits.len() == 64)?.parse().ok()
}

fn write_digest<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("sha256:{digest}"))
}

fn read_digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    sha256(&text).ok_or_else(|| D::Error::custom(format!("'{text}' is not a digest of SHA-256")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_those_of_the_specification() {
        let blob = |kind: &str| Descriptor::new(kind, Digest([0xab; 32]), 3);
        let manifest = Manifest::new(blob("application/c"), vec![blob("application/l").named("a b")]);
        let digest = format!("sha256:{}", "ab".repeat(32));
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            serde_json::json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": { "mediaType": "application/c", "digest": digest, "size": 3 },
                "layers": [
                    { "mediaType": "application/l", "digest": digest, "size": 3, "annotations": { TITLE: "a b" } }
                ],
            })
        );
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap().layers[0].title(), Some("a b"));
        for (good, bad) in [(&*digest, "sha256:../../x"), (&digest, "sha512:abab"), ("\"size\":3", "\"size\":-1")] {
            assert!(serde_json::from_str::<Manifest>(&text.replace(good, bad)).is_err(), "{bad}");
        }
    }
}
