//! How documents are written out.

use super::*;
use crate::access::policy::{Terms, documents};
use crate::config::Config;

fn config(members: &str) -> Config {
    let text = format!("[state]\ntable = \"arn:aws:dynamodb:eu-west-1:999999999999:table/state\"\n{members}");
    Config::parse(&text, "test", &|_| None).unwrap_or_else(|report| panic!("{report}"))
}

fn member(name: &str, table: &str, more: &str) -> String {
    let arn = format!("arn:aws:dynamodb:eu-west-1:111111111111:table/{table}");
    format!("[[member]]\nname = \"{name}\"\ntable = \"{arn}\"\n{more}\n")
}

fn written(members: &str) -> Vec<Document> {
    documents(&config(members), &Terms::default()).unwrap()
}

fn side<'a>(documents: &'a [Document], account: &str) -> Vec<&'a Document> {
    documents.iter().filter(|document| document.account == account).collect()
}

const ROUTE: &str = "[[route]]\nname = \"r\"\nfrom = \"a\"\nto = [\"b\", \"c\"]\n";

#[test]
fn names_that_come_to_the_same_stay_apart() {
    let members =
        member("a", "orders.x", "") + &member("b", "orders-copy", "") + &member("c", "orders_copy", "");
    let documents = written(&(members + ROUTE));
    let of = side(&documents, "111111111111");
    let template = cloudformation(&of);
    let resources = template["Resources"].as_object().unwrap();
    let tables: BTreeSet<&str> =
        resources.values().filter_map(|resource| resource["Properties"]["Table"].as_str()).collect();
    assert_eq!(tables.len(), 3, "{template:#}");
    assert!(resources.contains_key("StreamEuWest1OrdersX"), "a name of its own stays as it is: {template:#}");
    let text = terraform(&of);
    let heads: Vec<&str> = text.lines().filter(|line| line.starts_with("resource ")).collect();
    assert_eq!(heads.len(), heads.iter().collect::<BTreeSet<_>>().len(), "{heads:#?}");
    assert_eq!(heads.len(), 4, "{heads:#?}");
}

#[test]
fn a_role_keeps_its_path() {
    let role = |path: &str| {
        format!(
            "assume_role = {{ role = \"arn:aws:iam::111111111111:role/{path}in\", external_id = \"id\" }}"
        )
    };
    let members = member("a", "one", &role("team-a/"))
        + &member("b", "two", &role("team-b/"))
        + &member("c", "three", "");
    let documents = written(&(members + ROUTE));
    let files: BTreeSet<String> = documents.iter().map(|d| file_name(d, &documents)).collect();
    assert_eq!(files.len(), documents.len(), "{files:?}");
    let text = json(&documents).to_string();
    assert!(text.contains("create-role --role-name in --path /team-a/ --assume-role"), "{text}");
    let of = side(&documents, "111111111111");
    let template = cloudformation(&of);
    let paths: Vec<&Value> = template["Resources"]
        .as_object()
        .unwrap()
        .values()
        .filter(|resource| resource["Type"] == "AWS::IAM::Role" && resource["Properties"]["RoleName"] == "in")
        .map(|resource| &resource["Properties"]["Path"])
        .collect();
    assert_eq!(paths.len(), 2, "{template:#}");
    assert!(paths.contains(&&json!("/team-a/")) && paths.contains(&&json!("/team-b/")), "{template:#}");
    let text = terraform(&of);
    assert!(text.contains("path               = \"/team-a/\""), "{text}");
}

#[test]
fn commands_replace_no_policy_of_others() {
    let members = member("a", "one", "") + &member("b", "two", "") + &member("c", "three", "");
    let list = json(&written(&(members + ROUTE)));
    let commands = list["documents"].as_array().unwrap().iter().map(|d| d["apply"].as_str().unwrap());
    let puts: Vec<&str> = commands.filter(|command| command.contains("put-resource-policy")).collect();
    assert_eq!(puts.len(), 4);
    assert!(puts.iter().all(|put| put.contains("--expected-revision-id NO_POLICY")), "{puts:#?}");
}

#[test]
fn what_an_inline_policy_does_not_hold_is_a_managed_one() {
    let many: Vec<String> = (0..100).map(|n| format!("m{n}")).collect();
    let members: String =
        many.iter().map(|name| member(name, &format!("a-table-of-the-application-{name}"), "")).collect();
    let numbered = members.split("[[member]]").enumerate();
    let members: String =
        numbered.skip(1).map(|(n, text)| format!("[[member]]\nnumber = {n}{text}")).collect();
    let route = format!("[[route]]\nname = \"r\"\nfrom = \"m0\"\nto = {:?}\n", &many[1..]);
    let list = json(&written(&(members + &route)));
    let commands = list["documents"].as_array().unwrap().iter().map(|d| d["apply"].as_str().unwrap());
    let own: Vec<&str> = commands.filter(|command| command.starts_with("aws iam")).collect();
    assert!(own.len() > 1, "{own:#?}");
    for (index, command) in own.iter().enumerate() {
        let name = format!("create-policy --policy-name shardwalker-shardwalker-{} ", index + 1);
        assert!(
            command.contains("attach-role-policy --role-name shardwalker ") && command.contains(&name),
            "{command}"
        );
    }
}

#[test]
fn a_user_is_no_role() {
    let members = member("a", "one", "") + &member("b", "two", "") + &member("c", "three", "");
    let terms =
        Terms { principal: Some("arn:aws:iam::999999999999:user/ops/bob".into()), ..Terms::default() };
    let documents = documents(&config(&(members + ROUTE)), &terms).unwrap();
    let own = side(&documents, "999999999999");
    let text = json(&documents).to_string();
    assert!(text.contains("aws iam attach-user-policy --user-name bob ") && !text.contains("role"), "{text}");
    let template = cloudformation(&own);
    let users: Vec<&Value> = template["Resources"]
        .as_object()
        .unwrap()
        .values()
        .map(|resource| &resource["Properties"]["Users"])
        .collect();
    assert_eq!(users, [&json!(["bob"])], "{template:#}");
    let text = terraform(&own);
    assert!(
        text.contains("aws_iam_user_policy_attachment") && text.contains("  user       = \"bob\""),
        "{text}"
    );
}
