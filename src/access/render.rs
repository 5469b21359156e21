//! Policy documents, written out: as JSON with the command that applies each, as CloudFormation templates, as
//! Terraform files.
//!
//! Owns the forms only. CloudFormation has no resource that attaches a policy to a table which another stack (or
//! nobody's) has made; there a function does it, with the rights to do just that. Streams are found when the template
//! or the plan is applied, so their ARNs need not be known here.

use super::policy::{Attach, Document, Identity};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The documents with their places, and the command that applies each.
#[must_use]
pub fn json(documents: &[Document]) -> Value {
    let list: Vec<Value> = documents
        .iter()
        .map(|document| {
            let Document { account, attach, why, policy } = document;
            json!({
                "account": account,
                "attach": place(attach),
                "why": why,
                "file": file_name(document, documents),
                "apply": apply(document, documents),
                "policy": policy,
            })
        })
        .collect();
    json!({ "documents": list })
}

/// Where a document goes, for a person.
#[must_use]
pub fn place(attach: &Attach) -> String {
    match attach {
        Attach::Table(table) => format!("resource policy of {table}"),
        Attach::Stream(table) => format!("resource policy of the current stream of {table}"),
        Attach::Role(role) => format!("policy of {role}"),
        Attach::Trust(role) => format!("trust policy of {role}"),
        Attach::Key(key) => format!("one more statement in the key policy of {key}"),
    }
}

/// The name of a document's file among all of them.
#[must_use]
pub fn file_name(document: &Document, all: &[Document]) -> String {
    let identity = |kind: &str, arn: &str| {
        let Identity { path, name, .. } = Identity::of(arn);
        // What stands in no name stands for what stands in no file's name.
        let path =
            path.trim_start_matches('/').replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "~");
        format!("{kind}.{path}{name}")
    };
    let stem = match &document.attach {
        Attach::Table(table) => format!("table.{}.{}", table.region, table.table),
        Attach::Stream(table) => format!("stream.{}.{}", table.region, table.table),
        Attach::Role(role) => identity(Identity::of(role).kind(), role),
        Attach::Trust(role) => identity("trust", role),
        Attach::Key(key) => format!("key.{}", key.rsplit('/').next().unwrap_or(key)),
    };
    let number = part(document, all).map(|part| format!(".{part}")).unwrap_or_default();
    format!("{}.{stem}{number}.json", document.account)
}

/// Which of several documents with one place it is, counted from 1; `None` of a single one.
fn part(document: &Document, all: &[Document]) -> Option<usize> {
    let same = || all.iter().filter(|other| other.attach == document.attach);
    same().position(|other| other == document).filter(|_| same().count() > 1).map(|index| index + 1)
}

/// A resource has one policy, and putting one replaces it: only where there is none.
const NEW: &str = "--expected-revision-id NO_POLICY";

/// The command that puts a document into its place.
fn apply(document: &Document, all: &[Document]) -> String {
    let file = file_name(document, all);
    match &document.attach {
        Attach::Table(table) => format!(
            "aws dynamodb put-resource-policy --region {} --resource-arn {table} --policy file://{file} {NEW}",
            table.region
        ),
        Attach::Stream(table) => format!(
            "aws dynamodb put-resource-policy --region {} --policy file://{file} {NEW} --resource-arn \"$(aws dynamodb \
             describe-table --region {} --table-name {table} --query Table.LatestStreamArn --output text)\"",
            table.region, table.region
        ),
        Attach::Role(role) => {
            let identity = Identity::of(role);
            let (kind, name) = (identity.kind(), identity.name);
            match part(document, all) {
                None if !identity.user => format!(
                    "aws iam put-role-policy --role-name {name} --policy-name shardwalker --policy-document \
                     file://{file}"
                ),
                // More than an inline policy holds; a user's holds next to nothing.
                part => format!(
                    "aws iam attach-{kind}-policy --{kind}-name {name} --policy-arn \"$(aws iam create-policy \
                     --policy-name shardwalker-{name}-{} --policy-document file://{file} --query Policy.Arn \
                     --output text)\"",
                    part.unwrap_or(1)
                ),
            }
        }
        Attach::Trust(role) => {
            let Identity { path, name, .. } = Identity::of(role);
            let path = if path == "/" { String::new() } else { format!(" --path {path}") };
            format!(
                "aws iam create-role --role-name {name}{path} --assume-role-policy-document file://{file}"
            )
        }
        Attach::Key(_) => {
            "aws kms put-key-policy, with the statement added to those that are there".to_owned()
        }
    }
}

/// A name for each table and role of some documents, by its ARN: what `spell` makes of it, and more where that would
/// be the name of another one, too.
fn names(documents: &[&Document], spell: fn(&str) -> String) -> BTreeMap<String, String> {
    let mut spelled: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for document in documents {
        let (arn, text) = match &document.attach {
            Attach::Table(table) | Attach::Stream(table) => {
                (table.to_string(), format!("{} {}", table.region, table.table))
            }
            Attach::Role(role) | Attach::Trust(role) => (role.clone(), Identity::of(role).name.to_owned()),
            Attach::Key(_) => continue,
        };
        spelled.entry(spell(&text)).or_default().insert(arn);
    }
    let mut names = BTreeMap::new();
    for (name, arns) in spelled {
        let shared = arns.len() > 1;
        for arn in arns {
            let more =
                if shared { blake3::hash(arn.as_bytes()).to_hex()[..8].to_owned() } else { String::new() };
            names.insert(arn, format!("{name}{more}"));
        }
    }
    names
}

/// Letters and digits only, each word with a capital: what CloudFormation takes as a name.
fn logical(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect()
}

/// Small letters, digits and `_`: what Terraform takes as a name.
fn identifier(text: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let first = if text.starts_with(|c: char| c.is_ascii_digit()) { "_" } else { "" };
    first.chars().chain(text.chars().map(letter)).collect()
}

/// The documents of each account.
#[must_use]
pub fn by_account(documents: &[Document]) -> BTreeMap<&str, Vec<&Document>> {
    let mut accounts: BTreeMap<&str, Vec<&Document>> = BTreeMap::new();
    for document in documents {
        accounts.entry(&document.account).or_default().push(document);
    }
    accounts
}

/// The code of the function that attaches resource policies.
const ATTACH: &str = include_str!("attach.py");

/// A CloudFormation template of one account. `trusted` says which roles the template makes: those with a trust policy
/// among the documents; the policies of others are managed policies to attach.
#[must_use]
pub fn cloudformation(documents: &[&Document]) -> Value {
    let mut resources = Map::new();
    let mut attached = Vec::new();
    let trusts = |role: &str| documents.iter().any(|d| matches!(&d.attach, Attach::Trust(r) if r == role));
    let names = names(documents, logical);
    let name = |arn: &str| names.get(arn).map_or("", String::as_str);
    for (index, document) in documents.iter().enumerate() {
        let Document { attach, why, policy, .. } = document;
        match attach {
            Attach::Table(table) | Attach::Stream(table) => {
                let on = if matches!(attach, Attach::Stream(_)) { "Stream" } else { "Table" };
                let name = format!("{on}{}", name(&table.to_string()));
                attached.push(table.to_string());
                resources.insert(
                    name,
                    json!({
                        "Type": "Custom::ShardwalkerResourcePolicy",
                        "Metadata": { "Why": why },
                        "Properties": {
                            "ServiceToken": { "Fn::GetAtt": ["Attach", "Arn"] },
                            "Table": table.to_string(), "On": on, "Policy": policy.to_string(),
                            "Generation": { "Ref": "Generation" },
                        },
                    }),
                );
            }
            Attach::Trust(role) => {
                let Identity { path, name: role_name, .. } = Identity::of(role);
                resources.insert(
                    format!("Role{}", name(role)),
                    json!({
                        "Type": "AWS::IAM::Role", "Metadata": { "Why": why },
                        "Properties": {
                            "RoleName": role_name, "Path": path, "AssumeRolePolicyDocument": policy,
                        },
                    }),
                );
            }
            Attach::Role(role) => {
                let mut properties = json!({
                    "PolicyDocument": policy, "Description": "Written by shardwalker policy",
                });
                let identity = Identity::of(role);
                let to = if trusts(role) {
                    json!([{ "Ref": format!("Role{}", name(role)) }])
                } else {
                    json!([identity.name])
                };
                properties[if identity.user { "Users" } else { "Roles" }] = to;
                resources.insert(
                    format!("Policy{}No{index}", name(role)),
                    json!({
                        "Type": "AWS::IAM::ManagedPolicy", "Metadata": { "Why": why },
                        "Properties": properties,
                    }),
                );
            }
            Attach::Key(_) => {}
        }
    }
    let attaches = !attached.is_empty();
    if attaches {
        resources.extend(function(&attached));
    }
    let keys: Vec<Value> = keys(documents);
    let mut template = json!({
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "What lets Shardwalker in; written by shardwalker policy",
        "Resources": resources,
    });
    if attaches {
        template["Parameters"] = json!({ "Generation": {
            "Type": "Number", "Default": 1,
            "Description": "Another number attaches all policies again: a stream that was turned off and on has none",
        } });
    }
    if !keys.is_empty() {
        template["Metadata"] = json!({ "AddToKeyPolicies": keys });
    }
    template
}

fn keys(documents: &[&Document]) -> Vec<Value> {
    let key = |document: &&&Document| matches!(document.attach, Attach::Key(_));
    let entry = |document: &&Document| json!({ "Where": place(&document.attach), "Policy": document.policy });
    documents.iter().filter(key).map(entry).collect()
}

/// The function that attaches resource policies, with its role.
fn function(tables: &[String]) -> Map<String, Value> {
    let resources: BTreeSet<String> =
        tables.iter().flat_map(|table| [table.clone(), format!("{table}/stream/*")]).collect();
    let assumed = json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Principal": { "Service": "lambda.amazonaws.com" }, "Action": "sts:AssumeRole" }],
    });
    let allowed = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow", "Resource": resources,
            "Action": ["dynamodb:DescribeTable", "dynamodb:PutResourcePolicy", "dynamodb:DeleteResourcePolicy"],
        }],
    });
    let logs = json!({ "Fn::Sub": "arn:${AWS::Partition}:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole" });
    let entries = [
        (
            "AttachRole",
            json!({
                "Type": "AWS::IAM::Role",
                "Properties": {
                    "AssumeRolePolicyDocument": assumed, "ManagedPolicyArns": [logs],
                    "Policies": [{ "PolicyName": "attach", "PolicyDocument": allowed }],
                },
            }),
        ),
        (
            "Attach",
            json!({
                "Type": "AWS::Lambda::Function",
                "Properties": {
                    "Runtime": "python3.13", "Handler": "index.handler", "Timeout": 60,
                    "Role": { "Fn::GetAtt": ["AttachRole", "Arn"] }, "Code": { "ZipFile": ATTACH },
                },
            }),
        ),
    ];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A Terraform file of one account.
#[must_use]
pub fn terraform(documents: &[&Document]) -> String {
    let mut text = "# Written by shardwalker policy. The provider must be of this account.\n\
                    terraform {\n  required_providers {\n    aws = {\n      source  = \"hashicorp/aws\"\n      \
                    version = \">= 6.0\"\n    }\n  }\n}\n"
        .to_owned();
    let names = names(documents, identifier);
    let name = |arn: &str| names.get(arn).map_or("", String::as_str);
    for (index, document) in documents.iter().enumerate() {
        let Document { attach, why, policy, .. } = document;
        let policy = format!("{policy:#}").replace("${", "$${").replace('\n', "\n  ");
        let heredoc = format!("<<-JSON\n  {policy}\n  JSON");
        let _ = write!(text, "\n# {why}\n");
        let _ = match attach {
            Attach::Table(table) => {
                let name = name(&table.to_string());
                write!(
                    text,
                    "resource \"aws_dynamodb_resource_policy\" \"table_{name}\" {{\n  region       = \"{}\"\n  \
                     resource_arn = \"{table}\"\n  policy       = {heredoc}\n}}\n",
                    table.region
                )
            }
            Attach::Stream(table) => {
                let name = name(&table.to_string());
                write!(
                    text,
                    "data \"aws_dynamodb_table\" \"{name}\" {{\n  region = \"{region}\"\n  name   = \"{}\"\n}}\n\n\
                     resource \"aws_dynamodb_resource_policy\" \"stream_{name}\" {{\n  region       = \
                     \"{region}\"\n  resource_arn = data.aws_dynamodb_table.{name}.stream_arn\n  \
                     policy       = {heredoc}\n}}\n",
                    table.table,
                    region = table.region
                )
            }
            Attach::Trust(role) => {
                let Identity { path, name: role_name, .. } = Identity::of(role);
                write!(
                    text,
                    "resource \"aws_iam_role\" \"{}\" {{\n  name               = \"{role_name}\"\n  \
                     path               = \"{path}\"\n  assume_role_policy = {heredoc}\n}}\n",
                    name(role)
                )
            }
            Attach::Role(role) => {
                let (name, identity) = (name(role), Identity::of(role));
                let kind = identity.kind();
                let made = documents.iter().any(|d| matches!(&d.attach, Attach::Trust(r) if r == role));
                let to =
                    if made { format!("aws_iam_role.{name}.name") } else { format!("\"{}\"", identity.name) };
                write!(
                    text,
                    "resource \"aws_iam_policy\" \"{name}_{index}\" {{\n  policy = {heredoc}\n}}\n\n\
                     resource \"aws_iam_{kind}_policy_attachment\" \"{name}_{index}\" {{\n  {kind:<10} = {to}\n  \
                     policy_arn = aws_iam_policy.{name}_{index}.arn\n}}\n"
                )
            }
            Attach::Key(key) => {
                let policy = policy.replace('\n', "\n# ");
                write!(text, "# Add this statement to the policy of {key}:\n# {policy}\n")
            }
        };
    }
    text
}

#[cfg(test)]
mod tests;
