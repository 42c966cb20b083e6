//! Chains put together from what an EST server answers, in whatever order and with whatever beside it.

use aziot_pki::certificate::{Chain, ChainError, Validity};
use der::Decode as _;
use openssl::{
    nid::Nid,
    pkey::{PKey, Private},
    x509::X509,
};
use spki::SubjectPublicKeyInfoOwned;

use crate::{
    support::{CA, new_ec},
    tls_server::{Issuer, Traits, certify},
};

const AUTHORITY: Traits<'_> = Traits { authority: true, dns: None, ip: None, version_1: false, expired: false };

struct World {
    leaf_key: PKey<Private>,
    leaf: X509,
    middle: X509,
    root: X509,
    foreign: X509,
}

fn world() -> World {
    let keys: Vec<_> = (0..4).map(|_| new_ec(Nid::X9_62_PRIME256V1)).collect();
    let root = certify("root", &keys[0], None, AUTHORITY);
    let middle = certify("middle", &keys[1], Some(&Issuer(&root, &keys[0])), AUTHORITY);
    let leaf = certify("leaf", &keys[2], Some(&Issuer(&middle, &keys[1])), Traits::default());
    // The name of an issuer, but not its key.
    let foreign = certify("middle", &keys[3], None, AUTHORITY);
    World { leaf_key: keys[2].clone(), leaf, middle, root, foreign }
}

fn info(key: &PKey<Private>) -> SubjectPublicKeyInfoOwned {
    SubjectPublicKeyInfoOwned::from_der(&key.public_key_to_der().unwrap()).unwrap()
}

fn bytes(certificates: &[X509]) -> Vec<Vec<u8>> {
    certificates.iter().map(|certificate| certificate.to_der().unwrap()).collect()
}

#[track_caller]
fn assert_chain(world: &World, answer: &[&X509], authorities: &[&X509], expected: &[&X509]) {
    let owned = |certificates: &[&X509]| certificates.iter().map(|&one| one.clone()).collect::<Vec<_>>();
    let chain = Chain::for_key(&info(&world.leaf_key), owned(answer), &owned(authorities)).unwrap();
    assert_eq!(bytes(chain.certificates()), bytes(&owned(expected)));
}

#[test]
fn the_leaf_comes_first_and_its_issuers_in_order() {
    let world = world();
    let World { leaf, middle, root, foreign, .. } = &world;
    let whole = [leaf, middle, root];
    assert_chain(&world, &[leaf], &[], &[leaf]);
    assert_chain(&world, &[leaf, middle, root], &[], &whole);
    assert_chain(&world, &[root, middle, leaf], &[], &whole);
    assert_chain(&world, &[root, leaf], &[middle], &whole);
    assert_chain(&world, &[leaf], &[root, middle], &whole);
    assert_chain(&world, &[leaf, leaf, middle, leaf], &[middle, root, root, leaf], &whole);
    // A missing link ends the chain; authorities are kept all the same.
    assert_chain(&world, &[leaf], &[root], &[leaf, root]);
    // Of two with an issuer's name, the one that signed; the other stays only as an authority.
    assert_chain(&world, &[foreign, leaf, middle], &[root], &whole);
    assert_chain(&world, &[leaf], &[foreign, middle, root], &[leaf, middle, root, foreign]);
}

#[test]
fn an_answer_without_the_certificate_is_refused() {
    let world = world();
    let refused = |answer| Chain::for_key(&info(&world.leaf_key), answer, std::slice::from_ref(&world.leaf));
    for answer in [vec![], vec![world.middle.clone(), world.root.clone()]] {
        let count = answer.len();
        assert!(matches!(refused(answer), Err(ChainError::NoLeaf { count: told }) if told == count));
    }
}

#[test]
fn circles_of_issuers_end() {
    let (key, other_key, leaf_key) =
        (new_ec(Nid::X9_62_PRIME256V1), new_ec(Nid::X9_62_PRIME256V1), new_ec(Nid::X9_62_PRIME256V1));
    let root = certify("a", &key, None, AUTHORITY);
    let b = certify("b", &other_key, Some(&Issuer(&root, &key)), AUTHORITY);
    let a = certify("a", &key, Some(&Issuer(&b, &other_key)), AUTHORITY);
    let leaf = certify("leaf", &leaf_key, Some(&Issuer(&a, &key)), Traits::default());
    let chain = Chain::for_key(&info(&leaf_key), vec![b.clone(), a.clone(), leaf.clone()], &[]).unwrap();
    assert_eq!(bytes(chain.certificates()), bytes(&[leaf, a, b]));
}

/// A server that gives all its authorities one name, as nobody does but to keep a client busy.
#[test]
fn many_of_one_name_cost_little() {
    let keys = [new_ec(Nid::X9_62_PRIME256V1), new_ec(Nid::X9_62_PRIME256V1)];
    let leaf_key = new_ec(Nid::X9_62_PRIME256V1);
    let named = certify("same", &keys[0], None, AUTHORITY);
    // Each is issued by half of the others.
    let one = |turn: usize| certify("same", &keys[turn % 2], Some(&Issuer(&named, &keys[1 - turn % 2])), AUTHORITY);
    let many: Vec<_> = (0..200).map(one).collect();
    let leaf = certify("leaf", &leaf_key, Some(&Issuer(&named, &keys[1])), Traits::default());
    let mut answer = many[..100].to_vec();
    answer.push(leaf.clone());
    let chain = Chain::for_key(&info(&leaf_key), answer.clone(), &many[100..]).unwrap();
    let certificates = chain.certificates();
    assert_eq!(certificates.len(), 1 + 10 + 32);
    for (certificate, issuer) in certificates[..10].iter().zip(&certificates[1..]) {
        assert!(certificate.verify(&issuer.public_key().unwrap()).unwrap());
    }
    assert_eq!(bytes(&certificates[11..]), bytes(&many[100..132]));

    // The issuer is behind more than anybody tries.
    let (foreign, issuer) = (new_ec(Nid::X9_62_PRIME256V1), &named);
    let orphan = certify("leaf", &leaf_key, Some(&Issuer(issuer, &foreign)), Traits::default());
    let issuer_at_the_end = certify("same", &foreign, None, AUTHORITY);
    let answer = [vec![orphan.clone()], many[..99].to_vec(), vec![issuer_at_the_end.clone()]].concat();
    let chain = Chain::for_key(&info(&leaf_key), answer, &[]).unwrap();
    assert_eq!(bytes(chain.certificates()), bytes(std::slice::from_ref(&orphan)));
    let few = [vec![orphan.clone()], many[..60].to_vec(), vec![issuer_at_the_end.clone()]].concat();
    let chain = Chain::for_key(&info(&leaf_key), few, &[]).unwrap();
    assert_eq!(bytes(chain.certificates()), bytes(&[orphan, issuer_at_the_end]));
}

#[test]
fn fingerprint_and_dates_are_the_leafs() {
    let chain = Chain::from_pem(CA).unwrap();
    // 2025-01-01 and 2049-01-01.
    let validity = Validity { not_before: 1_735_689_600, not_after: 2_493_072_000 };
    assert_eq!(chain.validity(), Some(validity));
    assert_eq!(chain.fingerprint().unwrap()[..4], [0xee, 0x98, 0xc6, 0x5b]);
    assert_eq!((Chain::default().validity(), Chain::default().fingerprint()), (None, None));
}
