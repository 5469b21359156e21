//! Which number belongs to which table of a group: for ever, because the versions in all tables name it.
//!
//! Owns the registry in the state table, and what is refused by it. A number that is given to another table would
//! make versions of two writers tie, and echoes be taken for writes of the other; so a number stays taken when its
//! table leaves the group, and a table that comes back gets the one that it had.
//!
//! Rows: `group#<group>` / `number#<two hex digits>` and `group#<group>` / `table#<ARN>`, always both or none: the
//! first keeps a number to one table, the second a table to one number, also between workers that start together.

use crate::clock::Clock;
use crate::config::{Config, Group};
use crate::failure::{Class, Failure};
use crate::state::{SK, StateTable, get_text, key, text};
use crate::transact::{Action, Outcome};
use std::collections::BTreeMap;

/// Why a group's numbers are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// The number is another table's, which may have left the group.
    #[error(
        "group {group}: member {member} ({table}) has number {number}, which belongs to {owner} for ever, because \
         versions of its writes are in the tables; {}", use_free(member, *.free)
    )]
    Taken {
        /// The group.
        group: String,
        /// The member's name.
        member: String,
        /// Its table.
        table: String,
        /// The number that the config gives it.
        number: u8,
        /// The table to which the number belongs.
        owner: String,
        /// A number that was never used in the group, when there is one.
        free: Option<u8>,
    },
    /// The table has had another number.
    #[error(
        "group {group}: member {member} ({table}) has number {number} now and had {had}, which belongs to it for ever, \
         because versions of its writes are in the tables; set number = {had} for {member} again"
    )]
    Renumbered {
        /// The group.
        group: String,
        /// The member's name.
        member: String,
        /// Its table.
        table: String,
        /// The number that the config gives it.
        number: u8,
        /// The number that belongs to it.
        had: u8,
    },
}

fn use_free(member: &str, free: Option<u8>) -> String {
    match free {
        Some(free) => format!("use a number that was never used: set number = {free} for {member}"),
        None => {
            "all 256 numbers have been used: nothing can become a member of this group any more".to_owned()
        }
    }
}

/// A member as the registry knows it.
#[derive(Debug, Clone)]
struct Numbered {
    name: String,
    table: String,
    number: u8,
}

/// Sees that every member of a group has the number that belongs to it, and keeps the numbers of those that are new.
/// It can be repeated.
///
/// # Errors
/// The failure of a call; within it, what is refused. What was refused has changed nothing for the member it names.
pub async fn claim(
    state: &StateTable,
    clock: Clock,
    config: &Config,
    group: &Group,
) -> Result<Result<(), NumberError>, Failure> {
    let (members, partition) = (numbered(config, group), partition(group));
    let mut owners = owners(state, &partition).await?;
    let new = match missing(&group.name, &owners, &members) {
        Ok(new) => new,
        Err(refused) => return Ok(Err(refused)),
    };
    for member in new {
        if keep(state, clock, &partition, member).await? == Outcome::Done {
            tracing::info!(
                group = group.name,
                member = member.name,
                number = member.number,
                "its number is kept"
            );
            continue;
        }
        // Another worker was faster, with this member or with another one.
        owners = self::owners(state, &partition).await?;
        match missing(&group.name, &owners, &members) {
            Err(refused) => return Ok(Err(refused)),
            Ok(still) if still.iter().any(|other| other.number == member.number) => {
                let why =
                    format!("{partition} has a row of table {} without that of its number", member.table);
                return Err(Failure::new(Class::Unrecognised, "BadNumber", why));
            }
            Ok(_) => {}
        }
    }
    Ok(Ok(()))
}

/// Whether every member of a group has a number that it may have; keeps nothing.
///
/// # Errors
/// The failure of a call; within it, what would be refused.
pub async fn look(
    state: &StateTable,
    config: &Config,
    group: &Group,
) -> Result<Result<(), NumberError>, Failure> {
    let owners = owners(state, &partition(group)).await?;
    Ok(missing(&group.name, &owners, &numbered(config, group)).map(drop))
}

fn numbered(config: &Config, group: &Group) -> Vec<Numbered> {
    let members = group.members.iter().map(|index| &config.members[*index]);
    members.map(|m| Numbered { name: m.name.clone(), table: m.arn.to_string(), number: m.number }).collect()
}

fn partition(group: &Group) -> String {
    format!("group#{}", group.name)
}

/// The tables by their numbers. Strongly consistent.
async fn owners(state: &StateTable, partition: &str) -> Result<BTreeMap<u8, String>, Failure> {
    let rows = state.rows(partition, "number#", &[]).await?;
    let owner = |row| {
        let digits = get_text(row, SK)?.strip_prefix("number#")?;
        Some((u8::from_str_radix(digits, 16).ok()?, get_text(row, TABLE)?.to_owned()))
    };
    rows.iter()
        .map(|row| {
            owner(row).ok_or_else(|| Failure::new(Class::Unrecognised, "BadNumber", format!("{row:?}")))
        })
        .collect()
}

/// The members whose numbers are not kept yet: pure.
fn missing<'m>(
    group: &str,
    owners: &BTreeMap<u8, String>,
    members: &'m [Numbered],
) -> Result<Vec<&'m Numbered>, NumberError> {
    let mut new = Vec::new();
    for member in members {
        let Numbered { name, table, number } = member.clone();
        let had = owners.iter().find(|(_, owner)| **owner == table).map(|(had, _)| *had);
        match (had, owners.get(&number)) {
            (Some(had), _) if had != number => {
                return Err(NumberError::Renumbered {
                    group: group.to_owned(),
                    member: name,
                    table,
                    number,
                    had,
                });
            }
            (Some(_), _) => {}
            (None, Some(owner)) => {
                let (group, owner) = (group.to_owned(), owner.clone());
                let free = free(owners, members);
                return Err(NumberError::Taken { group, member: name, table, number, owner, free });
            }
            (None, None) => new.push(member),
        }
    }
    Ok(new)
}

/// One above all numbers that are known; when there is none, one between them.
fn free(owners: &BTreeMap<u8, String>, members: &[Numbered]) -> Option<u8> {
    let used =
        |number: u8| owners.contains_key(&number) || members.iter().any(|member| member.number == number);
    let highest = (0..=u8::MAX).rev().find(|number| used(*number));
    let above = highest.map_or(Some(0), |highest| highest.checked_add(1));
    above.or_else(|| (0..=u8::MAX).find(|number| !used(*number)))
}

/// Keeps the number of a member, unless it is another table's or the table has one.
async fn keep(
    state: &StateTable,
    clock: Clock,
    partition: &str,
    member: &Numbered,
) -> Result<Outcome, Failure> {
    let since = humantime::format_rfc3339_seconds(clock.now()).to_string();
    let digits = format!("{:02x}", member.number);
    let put = |sk: String, name: &str, value: &str| {
        let mut row = key(partition, &sk);
        row.insert(name.to_owned(), text(value));
        row.insert("since".to_owned(), text(&since));
        Action::put(row).condition("attribute_not_exists(#sk)").name("#sk", SK)
    };
    let number = put(format!("number#{digits}"), TABLE, &member.table);
    let table = put(format!("table#{}", member.table), "number", &digits);
    state.transact([number, table]).await
}

const TABLE: &str = "table";

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, number: u8) -> Numbered {
        Numbered { name: name.to_owned(), table: format!("arn:{name}"), number }
    }

    fn owners(of: &[(u8, &str)]) -> BTreeMap<u8, String> {
        of.iter().map(|(number, name)| (*number, format!("arn:{name}"))).collect()
    }

    #[test]
    fn a_number_belongs_to_one_table_and_a_table_to_one_number() {
        let known = owners(&[(1, "a"), (2, "b"), (7, "gone")]);
        let members = [member("a", 1), member("b", 2), member("c", 3)];
        let new: Vec<_> = missing("g", &known, &members).unwrap().iter().map(|new| new.number).collect();
        assert_eq!(new, [3]);
        let reused = [member("a", 1), member("c", 7)];
        let error = missing("g", &known, &reused).unwrap_err().to_string();
        assert_eq!(
            error,
            "group g: member c (arn:c) has number 7, which belongs to arn:gone for ever, because versions of its \
             writes are in the tables; use a number that was never used: set number = 8 for c"
        );
        // Two that swapped are each sent back to their own.
        let swapped = [member("a", 2), member("b", 1)];
        let error = missing("g", &known, &swapped).unwrap_err().to_string();
        assert_eq!(
            error,
            "group g: member a (arn:a) has number 2 now and had 1, which belongs to it for ever, because versions of \
             its writes are in the tables; set number = 1 for a again"
        );
        // One that comes back with its own.
        assert!(missing("g", &known, &[member("gone", 7)]).unwrap().is_empty());
    }

    #[test]
    fn the_free_number_was_never_used_and_is_not_about_to_be() {
        assert_eq!(free(&owners(&[(1, "a")]), &[member("b", 1), member("c", 5)]), Some(6));
        assert_eq!(free(&owners(&[(0, "a"), (255, "b")]), &[]), Some(1));
        let all: BTreeMap<_, _> = (0..=255).map(|number| (number, String::new())).collect();
        assert_eq!(free(&all, &[]), None);
        assert!(use_free("a", None).contains("all 256"));
    }
}
