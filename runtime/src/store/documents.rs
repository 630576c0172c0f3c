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

/// Entries fetched at a time; more than a record has parts, so that every page has a whole one.
const SCAN_PAGE: usize = 64;

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

/// One record, or none. Blocks.
///
/// # Errors
/// As [`StateStore::get`]; `Corrupt` for a record that lacks parts or does not parse.
pub fn document<T: DeserializeOwned>(store: &dyn StateStore, key: &str) -> Result<Option<T>, StoreError> {
    // A key that somebody sent could name a part.
    let Some(first) = store.get(key)?.filter(|_| !key.contains(PART_MARK)) else { return Ok(None) };
    if parts(&first)? == 1 {
        return parse(&[first]).map(Some);
    }
    // Read again with its parts, in one moment. They come before every longer key with this prefix.
    let entries = store.scan(key, None, PARTS_MAX)?;
    let Some(first) = entries.first().filter(|first| first.key == key) else { return Ok(None) };
    let record = entries.get(..parts(first)?).ok_or_else(|| corrupt(first))?;
    parse(record).map(Some)
}

/// The same without blocking the caller's thread. Needs a tokio runtime.
///
/// # Errors
/// As [`document`].
pub async fn read_document<T: DeserializeOwned + Send + 'static>(
    store: &Arc<dyn StateStore>,
    key: String,
) -> Result<Option<T>, StoreError> {
    let store = Arc::clone(store);
    let read = tokio::task::spawn_blocking(move || document(&*store, &key)).await;
    read.map_err(|error| StoreError::Unavailable(Arc::new(error)))?
}

/// All records under a prefix, in the order of their keys. Blocks.
///
/// # Errors
/// As [`StateStore::scan`]; `Corrupt` for a record that lacks parts or does not parse.
pub fn scan_documents<T: DeserializeOwned>(
    store: &dyn StateStore,
    prefix: &str,
) -> Result<Vec<(String, T)>, StoreError> {
    let mut documents = Vec::new();
    visit_documents(store, prefix, |key, document| {
        documents.push((key.to_owned(), document));
        Ok::<_, StoreError>(())
    })?;
    Ok(documents)
}

/// Shows all records under a prefix, one after the other in the order of their keys, and keeps few of them in memory.
/// Blocks. Records that change meanwhile are seen as they were or as they are, each as a whole.
///
/// # Errors
/// As [`scan_documents`], and the visitor's first error.
pub fn visit_documents<T: DeserializeOwned, E: From<StoreError>>(
    store: &dyn StateStore,
    prefix: &str,
    mut visit: impl FnMut(&str, T) -> Result<(), E>,
) -> Result<(), E> {
    let mut after: Option<String> = None;
    loop {
        let page = store.scan(prefix, after.as_deref(), SCAN_PAGE)?;
        let mut rest = page.as_slice();
        while let [first, ..] = rest {
            let Some((record, others)) = rest.split_at_checked(parts(first)?) else { break };
            visit(&first.key, parse(record)?)?;
            rest = others;
        }
        match rest {
            [] if page.len() < SCAN_PAGE => return Ok(()),
            // A record that the page's end cut is read whole by the next page.
            [first, ..] if page.len() < SCAN_PAGE => return Err(corrupt(first).into()),
            cut => after = page[..page.len() - cut.len()].last().map(|last| last.key.clone()),
        }
    }
}

/// The number of parts of the record that begins with this entry.
fn parts(first: &Entry) -> Result<usize, StoreError> {
    let parts = first.value.first().map_or(0, |parts| usize::from(*parts));
    if (1..=PARTS_MAX).contains(&parts) { Ok(parts) } else { Err(corrupt(first)) }
}

/// The record that these parts make, the first of which names it.
fn parse<T: DeserializeOwned>(record: &[Entry]) -> Result<T, StoreError> {
    let first = &record[0];
    let mut json = Vec::new();
    for (index, part) in record.iter().enumerate() {
        if part.key != part_key(&first.key, index) {
            return Err(corrupt(first));
        }
        json.extend_from_slice(part.value.get(1..).ok_or_else(|| corrupt(first))?);
    }
    serde_json::from_slice(&json).map_err(|_| corrupt(first))
}

fn corrupt(first: &Entry) -> StoreError {
    StoreError::Corrupt { key: first.key.clone() }
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

    #[tokio::test]
    async fn one_record_is_found_by_its_whole_key() {
        let store = MemoryStore::new();
        let long = "x".repeat(50_000);
        for (key, text) in [("d/a", long.as_str()), ("d/ab", "short")] {
            store.commit(Transaction::new().put_document(key, &text).unwrap()).await.unwrap();
        }
        let read = |key: &str| document::<String>(&store, key).unwrap();
        assert_eq!([read("d/a"), read("d/ab")], [Some(long), Some("short".to_owned())]);
        assert_eq!([read("d/"), read("d/abc"), read("d/a\u{1}01")], [None, None, None]);
    }

    #[tokio::test]
    async fn records_that_lie_across_pages_come_whole() {
        let store = MemoryStore::new();
        let text = |number: usize| "x".repeat(number % 5 * PART_BYTES);
        for number in 0..2 * SCAN_PAGE {
            let put = Transaction::new().put_document(&format!("d/{number:04}"), &text(number)).unwrap();
            store.commit(put).await.unwrap();
        }
        let found = scan_documents::<String>(&store, "d/").unwrap();
        assert_eq!(found.len(), 2 * SCAN_PAGE);
        assert!(found.iter().enumerate().all(|(number, (_, found))| *found == text(number)));

        // A record that has lost a part is an error wherever it lies.
        store.commit(Transaction::new().delete(part_key("d/0119", 4))).await.unwrap();
        assert!(matches!(scan_documents::<String>(&store, "d/"), Err(StoreError::Corrupt { key }) if key == "d/0119"));
    }
}
