package natrules_test

import (
	"testing"

	"github.com/portd/portd/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }
