//! Item operations: passed to the engine, with both images captured around every write.
//!
//! Promises that a write and its record happen as one step under the Region's lock, and that the answer is the
//! one the caller asked for, whatever was asked of the engine to see the images.

use super::Region;
use super::engine::{read, write};
use crate::sandbox::error::{ApiError, ApiResult};
use dynoxide::Item;
use dynoxide::actions::batch_write_item::BatchWriteItemRequest;
use dynoxide::actions::delete_item::DeleteItemRequest;
use dynoxide::actions::get_item::GetItemRequest;
use dynoxide::actions::put_item::PutItemRequest;
use dynoxide::actions::scan::ScanRequest;
use dynoxide::actions::transact_write_items::TransactWriteItemsRequest;
use dynoxide::actions::update_item::UpdateItemRequest;
use dynoxide::validation::normalize_item_sets;
use serde_json::Value;

/// Whether the caller wants nothing back, so that the engine may be asked for an image instead.
fn wants_nothing(return_values: Option<&str>) -> bool {
    matches!(return_values, None | Some("NONE"))
}

impl Region {
    /// Whether an operation reads or writes items.
    pub(in crate::sandbox) fn is_item_operation(operation: &str) -> bool {
        operation.ends_with("Item") || operation.ends_with("Items") || matches!(operation, "Query" | "Scan")
    }

    /// An item operation by name, its table names already plain.
    pub(in crate::sandbox) fn item_operation(&mut self, operation: &str, body: Value) -> ApiResult<Vec<u8>> {
        match operation {
            "GetItem" => self.pass(operation, body, |db, request| db.get_item(request)),
            "Query" => self.pass(operation, body, |db, request| db.query(request)),
            "Scan" => self.pass(operation, body, |db, request| db.scan(request)),
            "BatchGetItem" => self.pass(operation, body, |db, request| db.batch_get_item(request)),
            "TransactGetItems" => self.pass(operation, body, |db, request| db.transact_get_items(request)),
            "PutItem" => self.put_item(body),
            "UpdateItem" => self.update_item(body),
            "DeleteItem" => self.delete_item(body),
            "BatchWriteItem" => self.batch_write_item(body),
            "TransactWriteItems" => self.transact_write_items(body),
            _ => Err(ApiError::new("UnknownOperationException", "")),
        }
    }

    /// Hands a request to the engine as it is.
    pub(super) fn pass<Request, Answer>(
        &self,
        operation: &str,
        body: Value,
        run: impl FnOnce(&dynoxide::Database, Request) -> dynoxide::Result<Answer>,
    ) -> ApiResult<Vec<u8>>
    where
        Request: serde::de::DeserializeOwned,
        Answer: serde::Serialize,
    {
        write(&run(&self.db, read(operation, body)?)?)
    }

    fn captures(&self, table: &str) -> bool {
        self.table(table).is_some_and(|table| table.captures)
    }

    fn item(&self, table: &str, key: &Item) -> Option<Item> {
        let request = GetItemRequest {
            table_name: table.into(),
            key: key.clone(),
            consistent_read: Some(true),
            ..GetItemRequest::default()
        };
        self.db.get_item(request).ok()?.item
    }

    pub(super) fn key_of(&self, table: &str, item: &Item) -> Item {
        let keys = self.table(table).map(|table| table.keys.as_slice()).unwrap_or_default();
        keys.iter().filter_map(|name| Some((name.clone(), item.get(name)?.clone()))).collect()
    }

    fn put_item(&mut self, body: Value) -> ApiResult<Vec<u8>> {
        let mut request: PutItemRequest = read("PutItem", body)?;
        if !self.captures(&request.table_name) {
            return write(&self.db.put_item(request)?);
        }
        let table = request.table_name.clone();
        let hide = wants_nothing(request.return_values.as_deref());
        if hide {
            request.return_values = Some("ALL_OLD".into());
        }
        let mut new = request.item.clone();
        let mut answer = self.db.put_item(request)?;
        normalize_item_sets(&mut new);
        self.capture(&table, answer.attributes.as_ref(), Some(&new), false);
        if hide {
            answer.attributes = None;
        }
        write(&answer)
    }

    fn delete_item(&mut self, body: Value) -> ApiResult<Vec<u8>> {
        let mut request: DeleteItemRequest = read("DeleteItem", body)?;
        if !self.captures(&request.table_name) {
            return write(&self.db.delete_item(request)?);
        }
        let table = request.table_name.clone();
        let hide = wants_nothing(request.return_values.as_deref());
        if hide {
            request.return_values = Some("ALL_OLD".into());
        }
        let mut answer = self.db.delete_item(request)?;
        self.capture(&table, answer.attributes.as_ref(), None, false);
        if hide {
            answer.attributes = None;
        }
        write(&answer)
    }

    fn update_item(&mut self, body: Value) -> ApiResult<Vec<u8>> {
        let mut request: UpdateItemRequest = read("UpdateItem", body)?;
        if !self.captures(&request.table_name) {
            return write(&self.db.update_item(request)?);
        }
        let (table, key) = (request.table_name.clone(), request.key.clone());
        let hide = wants_nothing(request.return_values.as_deref());
        if hide {
            request.return_values = Some("ALL_NEW".into());
        }
        let old = self.item(&table, &key);
        let mut answer = self.db.update_item(request)?;
        let new = if hide { answer.attributes.take() } else { self.item(&table, &key) };
        self.capture(&table, old.as_ref(), new.as_ref(), false);
        write(&answer)
    }

    fn batch_write_item(&mut self, body: Value) -> ApiResult<Vec<u8>> {
        let request: BatchWriteItemRequest = read("BatchWriteItem", body)?;
        let mut tables: Vec<_> = request.request_items.iter().collect();
        tables.sort_unstable_by_key(|(table, _)| table.as_str());
        let mut touched = Vec::new();
        for (table, writes) in tables {
            for write in writes {
                let key = match (&write.put_request, &write.delete_request) {
                    (Some(put), _) => self.key_of(table, &put.item),
                    (None, Some(delete)) => delete.key.clone(),
                    (None, None) => continue,
                };
                touched.push((table.clone(), key));
            }
        }
        self.around(touched, |db| db.batch_write_item(request))
    }

    fn transact_write_items(&mut self, body: Value) -> ApiResult<Vec<u8>> {
        let request: TransactWriteItemsRequest = read("TransactWriteItems", body)?;
        let mut touched = Vec::new();
        for action in &request.transact_items {
            if let Some(put) = &action.put {
                touched.push((put.table_name.clone(), self.key_of(&put.table_name, &put.item)));
            } else if let Some(update) = &action.update {
                touched.push((update.table_name.clone(), update.key.clone()));
            } else if let Some(delete) = &action.delete {
                touched.push((delete.table_name.clone(), delete.key.clone()));
            }
        }
        self.around(touched, |db| db.transact_write_items(request))
    }

    /// Reads the touched items before and after a write, and captures what changed.
    fn around<Answer: serde::Serialize>(
        &mut self,
        touched: Vec<(String, Item)>,
        run: impl FnOnce(&dynoxide::Database) -> dynoxide::Result<Answer>,
    ) -> ApiResult<Vec<u8>> {
        let before: Vec<_> = touched
            .into_iter()
            .filter(|(table, _)| self.captures(table))
            .map(|(table, key)| {
                let old = self.item(&table, &key);
                (table, key, old)
            })
            .collect();
        let answer = run(&self.db)?;
        for (table, key, old) in before {
            let new = self.item(&table, &key);
            self.capture(&table, old.as_ref(), new.as_ref(), false);
        }
        write(&answer)
    }

    /// All items of a table, in the engine's order.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn items(&self, table: &str) -> ApiResult<Vec<Item>> {
        let mut items = Vec::new();
        let mut start = None;
        loop {
            let page = self.db.scan(ScanRequest {
                table_name: table.into(),
                exclusive_start_key: start,
                consistent_read: Some(true),
                ..ScanRequest::default()
            })?;
            items.extend(page.items.unwrap_or_default());
            match page.last_evaluated_key {
                Some(key) => start = Some(key),
                None => return Ok(items),
            }
        }
    }
}
