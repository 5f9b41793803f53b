package registry_test

import (
	"context"
	"errors"

	"github.com/portd/portd/internal/registry"
)

func (p *pegboard) Adopt(context.Context, registry.Adopt) (a registry.Adoption, _ error) {
	return a, errors.New("no process has a socket here")
}
