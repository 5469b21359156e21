//! What the documents of a config say.

use super::*;

const CONFIG: &str = r#"
    [state]
    table = "arn:aws:dynamodb:eu-west-1:999999999999:table/state"
    [[member]]
    name = "a"
    table = "arn:aws:dynamodb:eu-west-1:111111111111:table/one"
    [[member]]
    name = "b"
    table = "arn:aws:dynamodb:eu-west-1:222222222222:table/two"
    assume_role = { role = "arn:aws:iam::222222222222:role/in", external_id = "secret" }
    [[member]]
    name = "home"
    table = "arn:aws:dynamodb:eu-west-1:999999999999:table/three"
    [[route]]
    name = "r"
    from = "a"
    to = ["b", "home"]
"#;

fn config() -> Config {
    Config::parse(CONFIG, "test", &|_| None).unwrap()
}

fn written(terms: &Terms) -> Vec<Document> {
    documents(&config(), terms).unwrap()
}

fn find(documents: &[Document], wanted: impl Fn(&Attach) -> bool) -> &Document {
    documents.iter().find(|document| wanted(&document.attach)).unwrap()
}

#[test]
fn every_document_has_its_place() {
    let documents = written(&Terms::default());
    let places: Vec<(&str, &str)> = documents
        .iter()
        .map(|document| {
            let kind = match &document.attach {
                Attach::Table(_) => "table",
                Attach::Stream(_) => "stream",
                Attach::Role(_) => "role",
                Attach::Trust(_) => "trust",
                Attach::Key(_) => "key",
            };
            (document.account.as_str(), kind)
        })
        .collect();
    let expected = [
        ("111111111111", "table"),
        ("111111111111", "stream"),
        ("222222222222", "trust"),
        ("222222222222", "role"),
        ("999999999999", "role"),
    ];
    assert_eq!(places, expected, "a table of the replicator's own account needs no resource policy");
    let trust = find(&documents, |attach| matches!(attach, Attach::Trust(_)));
    let statement = &trust.policy["Statement"][0];
    assert_eq!(statement["Principal"]["AWS"], "arn:aws:iam::999999999999:role/shardwalker");
    assert_eq!(statement["Condition"]["StringEquals"]["sts:ExternalId"], "secret");
    let own = find(&documents, |a| matches!(a, Attach::Role(role) if role.contains("999999999999")));
    let text = own.policy.to_string();
    for resource in [
        "arn:aws:dynamodb:eu-west-1:111111111111:table/one/stream/*",
        "arn:aws:dynamodb:eu-west-1:999999999999:table/three",
        "arn:aws:dynamodb:eu-west-1:999999999999:table/state",
        "arn:aws:iam::222222222222:role/in",
    ] {
        assert!(text.contains(&format!("\"{resource}\"")), "{resource}: {text}");
    }
    assert!(!text.contains("222222222222:table"), "{text}");
    assert!(!text.contains("Scan") && !text.contains("CreateTable"), "{text}");
}

#[test]
fn conditions_stand_where_the_request_arrives() {
    let terms =
        Terms { organization: Some("o-1".into()), endpoints: vec!["vpce-1".into()], ..Terms::default() };
    let documents = written(&terms);
    let condition = |wanted: fn(&Attach) -> bool| {
        find(&documents, wanted).policy["Statement"][0].get("Condition").cloned().unwrap_or_default()
    };
    let both = json!({"StringEquals": {"aws:PrincipalOrgID": "o-1", "aws:SourceVpce": ["vpce-1"]}});
    assert_eq!(condition(|a| matches!(a, Attach::Table(_))), both);
    assert_eq!(condition(|a| matches!(a, Attach::Stream(_))), both);
    let trust = json!({"StringEquals": {"aws:PrincipalOrgID": "o-1", "sts:ExternalId": "secret"}});
    assert_eq!(condition(|a| matches!(a, Attach::Trust(_))), trust, "STS has endpoints of its own");
    let role = json!({"StringEquals": {"aws:SourceVpce": ["vpce-1"]}});
    assert_eq!(condition(|a| matches!(a, Attach::Role(role) if role.contains("222222222222"))), role);
    assert_eq!(condition(|a| matches!(a, Attach::Role(role) if role.contains("999999999999"))), Value::Null);
}

#[test]
fn a_customer_key_is_allowed_on_both_sides_and_only_through_dynamodb() {
    let key = "arn:aws:kms:eu-west-1:111111111111:key/1";
    let terms = Terms { keys: BTreeMap::from([("a".into(), key.into())]), ..Terms::default() };
    let documents = written(&terms);
    let statement = &find(&documents, |a| matches!(a, Attach::Key(_))).policy["Statement"][0];
    assert_eq!(statement["Principal"]["AWS"], "arn:aws:iam::999999999999:role/shardwalker");
    let via = "dynamodb.eu-west-1.amazonaws.com";
    assert_eq!(statement["Condition"]["StringEquals"]["kms:ViaService"], via);
    let own = find(&documents, |a| matches!(a, Attach::Role(role) if role.contains("999999999999")));
    assert!(own.policy.to_string().contains(key));
    let state = "arn:aws:kms:eu-west-1:999999999999:key/2";
    let terms = Terms { keys: BTreeMap::from([(STATE_KEY.into(), state.into())]), ..Terms::default() };
    let documents = written(&terms);
    let own = find(&documents, |a| matches!(a, Attach::Role(role) if role.contains("999999999999")));
    assert!(own.policy.to_string().contains(state), "the state table's");
    let terms = Terms { keys: BTreeMap::from([("x".into(), key.into())]), ..Terms::default() };
    assert_eq!(documents_of(&terms), Err(PolicyError::NoMember("x".into())));
}

fn documents_of(terms: &Terms) -> Result<Vec<Document>, PolicyError> {
    documents(&config(), terms)
}

#[test]
fn long_policies_are_split_or_refused() {
    let mut text = "[state]\ntable = \"state\"\nregion = \"eu-west-1\"\n".to_owned();
    let mut names = Vec::new();
    for index in 0..100 {
        let (name, number) = (format!("m{index}"), index);
        text += &format!(
            "[[member]]\nname = \"{name}\"\nnumber = {number}\n\
             table = \"arn:aws:dynamodb:eu-west-1:{index:012}:table/a-table-of-the-application\"\n"
        );
        names.push(name);
    }
    text += &format!("[[route]]\nname = \"r\"\nfrom = \"m0\"\nto = {:?}\n", &names[1..]);
    let config = Config::parse(&text, "test", &|_| None).unwrap();
    let written = documents(&config, &Terms::default()).unwrap();
    let own: Vec<&Document> = written.iter().filter(|d| matches!(d.attach, Attach::Role(_))).collect();
    assert!(own.len() > 1);
    assert!(own.iter().all(|d| d.policy.to_string().len() <= MOST_MANAGED && d.why.contains(" of ")));
    assert!(own[0].account == UNKNOWN_ACCOUNT, "a state table by name does not tell the account");
    let resources = own.iter().flat_map(|d| d.policy["Statement"].as_array().unwrap());
    let tables: BTreeSet<String> = resources
        .flat_map(|s| s["Resource"].as_array().unwrap())
        .map(|r| r.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(tables.len(), 100 + 1 + 1, "each table, the stream and the state table");
    let networks = |many: u32| (0..many).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let terms = Terms { networks: networks(120), ..Terms::default() };
    assert!(
        matches!(documents_of(&terms), Err(PolicyError::TrustTooLong(role, _)) if role.ends_with("role/in"))
    );
    let terms = Terms { networks: networks(2000), ..Terms::default() };
    assert!(matches!(documents(&config, &terms), Err(PolicyError::TooLong(..))));
}

/// A statement is cut where it gets too long, whatever the names are.
#[test]
fn the_longest_names_of_very_many_members_fit() {
    let mut text = "[state]\ntable = \"state\"\nregion = \"eu-west-1\"\n".to_owned();
    let name = "n".repeat(251);
    let by_role = "assume_role = { role = \"arn:aws:iam::222222222222:role/in\" }\n";
    let (pairs, mut tables) = (200, BTreeSet::new());
    for index in 0..pairs {
        for (side, account, access) in [("a", "111111111111", ""), ("b", "222222222222", by_role)] {
            let table = format!("arn:aws:dynamodb:eu-west-1:{account}:table/{side}{index:03}{name}");
            text += &format!("[[member]]\nname = \"{side}{index}\"\ntable = \"{table}\"\n{access}");
            tables.insert(table);
        }
        text += &format!("[[route]]\nname = \"r{index}\"\nfrom = \"a{index}\"\nto = [\"b{index}\"]\n");
    }
    let config = Config::parse(&text, "test", &|_| None).unwrap_or_else(|report| panic!("{report}"));
    let features: BTreeSet<Feature> =
        [Feature::Backfill, Feature::Verify, Feature::Repair, Feature::Strip].into();
    for networks in [Vec::new(), (0..40).map(|n| format!("10.0.{n}.0/24")).collect()] {
        let written =
            documents(&config, &Terms { networks, features: features.clone(), ..Terms::default() }).unwrap();
        for document in &written {
            let bound = if matches!(document.attach, Attach::Role(_)) { MOST_MANAGED } else { MOST_RESOURCE };
            assert!(document.policy.to_string().len() <= bound);
        }
        let roles = written.iter().filter(|document| matches!(document.attach, Attach::Role(_)));
        let resources: Vec<String> = roles
            .flat_map(|document| document.policy["Statement"].as_array().unwrap())
            .flat_map(|statement| statement["Resource"].as_array().unwrap())
            .map(|resource| resource.as_str().unwrap().to_owned())
            .collect();
        let all = tables.iter().all(|table| resources.contains(table));
        assert!(all && resources.iter().collect::<BTreeSet<_>>().len() == 2 * pairs + pairs + 2);
    }
}

#[test]
fn a_role_of_two_members_lets_in_with_the_external_id_of_each() {
    let text = CONFIG.replace(
        "table = \"arn:aws:dynamodb:eu-west-1:999999999999:table/three\"",
        "table = \"arn:aws:dynamodb:eu-west-1:222222222222:table/three\"\n\
         assume_role = { role = \"arn:aws:iam::222222222222:role/in\", external_id = \"other\" }",
    );
    let written =
        |text: &str| documents(&Config::parse(text, "test", &|_| None).unwrap(), &Terms::default()).unwrap();
    let condition = |documents: &[Document]| {
        let trust = find(documents, |a| matches!(a, Attach::Trust(_)));
        trust.policy["Statement"][0].get("Condition").cloned().unwrap_or_default()
    };
    let both = json!({"StringEquals": {"sts:ExternalId": ["other", "secret"]}});
    assert_eq!(condition(&written(&text)), both);
    let one_without = text.replace(", external_id = \"other\"", "");
    assert_eq!(condition(&written(&one_without)), Value::Null, "who has none could not come in");
}

#[test]
fn a_state_table_by_a_role_does_not_tell_where_the_replicator_is() {
    let state = "table = \"arn:aws:dynamodb:eu-west-1:999999999999:table/state\"";
    let by_role = format!("{state}\nassume_role = {{ role = \"arn:aws:iam::999999999999:role/state\" }}");
    let config = Config::parse(&CONFIG.replace(state, &by_role), "test", &|_| None).unwrap();
    assert!(principal(&config, &Terms::default()).contains(UNKNOWN_ACCOUNT));
}

#[test]
fn a_state_table_of_another_account_has_a_resource_policy() {
    let replicator = "arn:aws:iam::888888888888:role/shardwalker";
    let terms = Terms {
        principal: Some(replicator.into()),
        features: [Feature::CreateStateTable].into(),
        ..Terms::default()
    };
    let documents = written(&terms);
    let state = find(&documents, |a| matches!(a, Attach::Table(table) if table.table == "state"));
    assert_eq!(state.account, "999999999999");
    let statement = &state.policy["Statement"][0];
    assert_eq!(statement["Principal"]["AWS"], replicator);
    let actions = statement["Action"].to_string();
    assert!(actions.contains("BatchGetItem") && !actions.contains("CreateTable"), "{actions}");
    assert!(!actions.contains("TimeToLive"), "no resource policy can allow that: {actions}");
}
