//! JSON records in the store. A record that is larger than one value is spread over several keys, in one transaction,
//! so that callers need not know the limit of a value.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Entry, MAX_VALUE_BYTES, StateStore, StoreError, Transaction};

/// Most values of one record.
const PARTS_MAX: usize = 16;

/// Payload of one value; its first byte is the number of parts.
const PART_BYTES: usize = MAX_VALUE_BYTES - 1;

/// Largest record as JSON.
pub const DOCUMENT_BYTES_MAX: usize = PARTS_MAX * PART_BYTES;

/// Separates a record's key from the number of a further part. Sorts before every character of a key, so a record's
/// parts follow it in a scan.
const PART_MARK: char = '\u{1}';

/// Entries fetched at a time.
const SCAN_PAGE: usize = 1000;

impl Transaction {
    /// Writes a record.
    ///
    /// # Errors
    /// `TooLarge` above [`DOCUMENT_BYTES_MAX`].
    pub fn put_document(mut self, key: &str, document: &impl Serialize) -> Result<Transaction, StoreError> {
        let json = serde_json::to_vec(document).map_err(|error| StoreError::Unavailable(Arc::new(error)))?;
        if json.len() > DOCUMENT_BYTES_MAX {
            return Err(StoreError::TooLarge { key: key.to_owned(), bytes: json.len(), max: DOCUMENT_BYTES_MAX });
        }
        let parts = json.chunks(PART_BYTES).count();
        for (index, part) in json.chunks(PART_BYTES).enumerate() {
            self = self.put(part_key(key, index), [&[parts as u8], part].concat());
        }
        for index in parts..PARTS_MAX {
            self = self.delete(part_key(key, index));
        }
        Ok(self)
    }

    /// Removes a record.
    #[must_use]
    pub fn delete_document(mut self, key: &str) -> Transaction {
        for index in 0..PARTS_MAX {
            self = self.delete(part_key(key, index));
        }
        self
    }
}

/// All records under a prefix, in the order of their keys.
///
/// # Errors
/// As [`StateStore::scan`]; `Corrupt` for a record that lacks parts or does not parse.
pub fn scan_documents<T: DeserializeOwned>(
    store: &dyn StateStore,
    prefix: &str,
) -> Result<Vec<(String, T)>, StoreError> {
    let mut entries = scan_all(store, prefix)?.into_iter().peekable();
    let mut documents = Vec::new();
    while let Some(first) = entries.next() {
        let corrupt = || StoreError::Corrupt { key: first.key.clone() };
        let (&parts, head) = first.value.split_first().ok_or_else(corrupt)?;
        let mut json = head.to_vec();
        for index in 1..usize::from(parts) {
            let part = entries.next_if(|entry| entry.key == part_key(&first.key, index)).ok_or_else(corrupt)?;
            json.extend_from_slice(part.value.get(1..).ok_or_else(corrupt)?);
        }
        let document = serde_json::from_slice(&json).map_err(|_| corrupt())?;
        documents.push((first.key, document));
    }
    Ok(documents)
}

fn scan_all(store: &dyn StateStore, prefix: &str) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let after = entries.last().map(|entry| entry.key.clone());
        let page = store.scan(prefix, after.as_deref(), SCAN_PAGE)?;
        let last = page.len() < SCAN_PAGE;
        entries.extend(page);
        if last {
            return Ok(entries);
        }
    }
}

fn part_key(key: &str, index: usize) -> String {
    match index {
        0 => key.to_owned(),
        _ => format!("{key}{PART_MARK}{index:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::*;

    #[tokio::test]
    async fn records_of_any_size_up_to_the_limit_come_back_and_shrink() {
        let store = MemoryStore::new();
        let long = "x".repeat(50_000);
        let put = |key: &str, text: &str| Transaction::new().put_document(key, &text).unwrap();
        store.commit(put("d/a", &long)).await.unwrap();
        store.commit(put("d/ab", "short")).await.unwrap();
        let read = || scan_documents::<String>(&store, "d/").unwrap();
        assert_eq!(read(), [("d/a".to_owned(), long), ("d/ab".to_owned(), "short".to_owned())]);

        store.commit(put("d/a", "now short")).await.unwrap();
        assert_eq!(read()[0].1, "now short");
        store.commit(Transaction::new().delete_document("d/a")).await.unwrap();
        assert_eq!(read().len(), 1);
        let error = Transaction::new().put_document("d/a", &"x".repeat(DOCUMENT_BYTES_MAX)).unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }));
    }
}
