//! The maps of the state: persistent, so that a copy of the whole state is a handful of pointers.
//!
//! The owner of the state changes it while readers hold snapshots of it. With ordinary maps each
//! batch of changes would copy one pointer and one key for each of thousands of records; here it
//! copies the path to what it changes, some dozen nodes, and shares the rest.

use std::borrow::Borrow;
use std::fmt;

use rpds::RedBlackTreeMapSync;
use serde::Deserialize;
use serde::Serialize;

/// A sorted map of which copies share what is the same. Its stored form is that of any map.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent, bound(serialize = "K: Ord + Serialize, V: Serialize"))]
#[serde(bound(deserialize = "K: Ord + Deserialize<'de>, V: Deserialize<'de>"))]
pub struct Map<K: Ord, V>(RedBlackTreeMapSync<K, V>);

impl<K: Ord, V> Map<K, V> {
    /// An empty map.
    pub fn new() -> Self {
        Self(RedBlackTreeMapSync::new_sync())
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    /// Whether there is a value of a key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    /// Sets the value of a key.
    pub fn insert(&mut self, key: K, value: V) {
        self.0.insert_mut(key, value);
    }

    /// All entries, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter()
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// All values, sorted by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values()
    }

    /// Whether both are the same copy: true only if nothing was changed between them. Costs
    /// nothing; two maps made apart are not the same copy even if all they hold is equal.
    pub fn is_same_copy(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl<K: Ord + Clone, V: Clone> Map<K, V> {
    /// The value of a key, to change it.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        // The library copies the path before it knows whether the key is there.
        if !self.0.contains_key(key) {
            return None;
        }
        self.0.get_mut(key)
    }

    /// Takes the value of a key out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let value = self.0.get(key)?.clone();
        self.0.remove_mut(key);
        Some(value)
    }
}

impl<K: Ord, V> Default for Map<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl<'a, K: Ord, V> IntoIterator for &'a Map<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = <&'a RedBlackTreeMapSync<K, V> as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::Just;
    use proptest::prelude::Strategy;
    use proptest::prelude::any;
    use proptest::prelude::prop;
    use proptest::prelude::prop_assert;
    use proptest::prelude::prop_assert_eq;
    use proptest::prelude::prop_oneof;
    use proptest::prelude::proptest;

    use super::Map;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, u8),
        Change(u8, u8),
        Remove(u8),
        Copy,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (any::<u8>(), any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
            (any::<u8>(), any::<u8>()).prop_map(|(key, value)| Step::Change(key, value)),
            any::<u8>().prop_map(Step::Remove),
            Just(Step::Copy),
        ];
        prop::collection::vec(step, 0..300)
    }

    fn same(map: &Map<u8, u8>, plain: &BTreeMap<u8, u8>) -> bool {
        map.len() == plain.len()
            && map.is_empty() == plain.is_empty()
            && map.iter().eq(plain.iter())
            && map.keys().eq(plain.keys())
            && map.values().eq(plain.values())
    }

    proptest! {
        #[test]
        fn it_does_what_an_ordinary_map_does_and_copies_stay_as_they_were(steps in steps()) {
            let (mut map, mut plain) = (Map::new(), BTreeMap::new());
            let mut copies = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        map.insert(key, value);
                        plain.insert(key, value);
                    }
                    Step::Change(key, value) => {
                        let found = map.get_mut(&key).map(|it| *it = value).is_some();
                        prop_assert_eq!(found, plain.get_mut(&key).map(|it| *it = value).is_some());
                    }
                    Step::Remove(key) => prop_assert_eq!(map.remove(&key), plain.remove(&key)),
                    Step::Copy => {
                        copies.push((map.clone(), plain.clone()));
                        prop_assert!(copies.last().is_some_and(|(it, _)| it.is_same_copy(&map)));
                    }
                }
                prop_assert!(same(&map, &plain));
                let json = serde_json::to_string(&map).unwrap();
                prop_assert_eq!(&json, &serde_json::to_string(&plain).unwrap());
            }
            for (map, plain) in &copies {
                prop_assert!(same(map, plain));
                let json = serde_json::to_string(map).unwrap();
                let read: Map<u8, u8> = serde_json::from_str(&json).unwrap();
                prop_assert!(read == *map && !read.is_same_copy(map) || plain.is_empty());
            }
        }
    }
}
