#include "src/core/extents.h"

#include <doctest/doctest.h>

namespace blk {
namespace {

TEST_CASE("extents: equal neighbours are one, and nothing lies beyond the end") {
  ExtentList list(100, 50);
  list.Append(10, kExtentData);
  list.Append(10, kExtentData);
  list.Append(10, kExtentHole);
  CHECK(list.extents() == std::vector<Extent>{{20, kExtentData}, {10, kExtentHole}});
  CHECK_FALSE(list.full());
  list.Append(100, kExtentData);
  CHECK(list.full());
  CHECK(list.extents()[2] == Extent{20, kExtentData});
}

TEST_CASE("extents: how far the last goes on") {
  ExtentList list(0, 10);
  list.Append(30, kExtentHole);
  CHECK(list.beyond() == 20);
  CHECK(list.reach() == 30);
  list.Append(5, kExtentHole);
  CHECK(list.beyond() == 25);
  list.Append(5, kExtentData);  // another one: the last is over
  list.Append(5, kExtentHole);
  CHECK(list.beyond() == 25);
  list.Reset(0, 10);
  CHECK(list.beyond() == 0);
  list.Append(10, kExtentData);
  list.Append(1, kExtentHole);
  CHECK(list.beyond() == 0);
}

TEST_CASE("extents: a list that holds no more ends before the rest") {
  ExtentList one(0, 10, 1);
  one.Append(4, kExtentData);
  one.Append(20, kExtentHole);
  CHECK(one.full());
  CHECK(one.next() == 4);
  CHECK(one.beyond() == 0);
}

TEST_CASE("extents: windows and intersections") {
  ExtentList list(0, 30);
  list.Append(10, kExtentData);
  list.Append(20, kExtentHoleZero);
  CHECK(Window(list, 5, 10, 100).start() == 105);
  CHECK(Window(list, 5, 10, 100).extents() ==
        std::vector<Extent>{{5, kExtentData}, {5, kExtentHoleZero}});
  ExtentList other(0, 30);
  other.Append(20, kExtentZero);
  CHECK(Intersect(list, other).extents() ==
        std::vector<Extent>{{10, kExtentData}, {10, kExtentZero}});
}

}  // namespace
}  // namespace blk
