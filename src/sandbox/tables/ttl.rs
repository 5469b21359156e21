//! The time-to-live service: deletes expired items, as itself.

use super::Region;
use crate::sandbox::error::ApiResult;
use dynoxide::AttributeValue;
use dynoxide::actions::delete_item::DeleteItemRequest;
use dynoxide::actions::describe_time_to_live::DescribeTimeToLiveRequest;

/// AWS leaves items alone whose time is further back than five years: such a number is not meant as a time.
const OLDEST_S: u64 = 5 * 365 * 86_400;

impl Region {
    /// Deletes the items whose time has come, in every table with TTL on. Returns how many.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn sweep_ttl(&mut self) -> ApiResult<usize> {
        let now_s = self.now_ms() / 1000;
        let tables: Vec<String> = self.table_names().cloned().collect();
        let mut deleted = 0;
        for table in tables {
            let request = DescribeTimeToLiveRequest { table_name: table.clone() };
            let ttl = self.db.describe_time_to_live(request)?.time_to_live_description;
            let Some(attribute) = ttl.attribute_name.filter(|_| ttl.time_to_live_status == "ENABLED") else {
                continue;
            };
            for item in self.items(&table)? {
                let Some(AttributeValue::N(time)) = item.get(&attribute) else { continue };
                let due = time.parse::<u64>().is_ok_and(|at| at <= now_s && at + OLDEST_S > now_s);
                if !due {
                    continue;
                }
                let key = self.key_of(&table, &item);
                let request =
                    DeleteItemRequest { table_name: table.clone(), key, ..DeleteItemRequest::default() };
                self.db.delete_item(request)?;
                self.capture(&table, Some(&item), None, true);
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}
